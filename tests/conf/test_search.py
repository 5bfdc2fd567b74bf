"""Adaptive search: which points come next, that it ends at a bracketed optimum, and that it needs no state."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.points import expand
from conf.search import missing, more, outcomes, result, searched
from data.records import checkpoint_folder

pytestmark = pytest.mark.usefixtures("hydra_conf")
SEARCH = ["launch.search.over=[peak_lr]", "eval.tokens=512"]


def finish(points, loss, status="completed"):
    """Writes how the points ended that have not: at `loss` of their peak rate and seed."""
    for point in points:
        path = point.folder / "summary.json"
        if point.parent:
            kept = checkpoint_folder(point.parent, point.config["parent"]["tokens"]) / "manifest.json"
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.touch()
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            value = loss(point.config["peak_lr"], point.config["seed"])
            ended = {"status": status if math.isfinite(value) else "diverged", "eval_loss": value}
            path.write_text(json.dumps(ended))


def run(asked, loss, rounds=20):
    """Trains as the launcher does, until nothing is added; the points and how many were trained in each round."""
    counts, points = [], expand(asked)
    for _ in range(rounds):
        points = searched(points)
        counts.append(sum(not point.folder.exists() for point in points))
        finish(points, loss)
        if not more(points):
            return points, counts
    raise AssertionError("the search does not end")


def bowl(best):
    return lambda rate, seed: (math.log2(rate) - math.log2(best)) ** 2 + 0.01 * seed


@pytest.mark.parametrize("best", [1.1e-3, 1e-2, 0.33])
def test_it_walks_to_the_optimum_and_brackets_it(tiny, best):
    points, counts = run([[*tiny, *SEARCH, "peak_lr=1e-2"]], bowl(best))
    rates = sorted(point.config["peak_lr"] for point in points)
    nearest = min(rates, key=lambda rate: abs(math.log2(rate / best)))
    assert rates[0] < nearest < rates[-1] and abs(math.log2(nearest / best)) <= 0.5
    assert counts[0] == 1 and sum(counts) == len(points)


def test_the_same_command_goes_on_where_it_was_and_then_does_nothing(tiny):
    asked = [[*tiny, *SEARCH, "peak_lr=1e-2"]]
    loss = bowl(0.08)
    finish(searched(expand(asked)), loss)
    first = {point.run_id for point in searched(expand(asked))}
    points, counts = run(asked, loss)
    assert first < {point.run_id for point in points} and counts[0] == 2
    assert run(asked, loss)[1] == [0]


def test_every_seed_of_a_value_is_trained_and_their_mean_counts(tiny):
    asked = [[*tiny, *SEARCH, "peak_lr=1e-2", f"seed={seed}"] for seed in (0, 1)]
    finish(searched(expand(asked))[:1], bowl(1e-2))
    assert len(searched(expand(asked))) == 2  # one seed has no result yet: nothing is decided
    points, _ = run(asked, bowl(1e-2))
    assert sorted((p.config["peak_lr"], p.config["seed"]) for p in points) == [
        (rate, seed) for rate in (5e-3, 1e-2, 2e-2) for seed in (0, 1)
    ]


def test_other_points_are_searched_by_themselves(tiny):
    asked = [[*tiny, *SEARCH, f"ramp.batch_size={batch}", "peak_lr=1e-2"] for batch in (4, 8)]
    points, _ = run(asked, lambda rate, seed: (math.log2(rate) - math.log2(1e-2)) ** 2)
    assert len(points) == 6


def test_a_rate_that_diverges_is_beyond_the_bracket(tiny):
    points, _ = run([[*tiny, *SEARCH, "peak_lr=1e-2"]], lambda rate, seed: math.inf if rate > 1e-2 else -rate)
    assert sorted(point.config["peak_lr"] for point in points) == [5e-3, 1e-2, 2e-2]


def test_no_more_values_than_allowed(tiny):
    points, _ = run([[*tiny, *SEARCH, "launch.search.most=4", "peak_lr=1e-2"]], lambda rate, seed: -rate)
    assert len(points) == 4


def test_an_invalid_neighbour_is_said_and_left_out(tiny, capsys):
    asked = [[*tiny, "launch.search.over=[ramp.batch_size]", "ramp.batch_size=1"]]
    points = searched(expand(asked))
    finish(points, lambda rate, seed: 1.0)
    assert [point.config["ramp"]["batch_size"] for point in searched(expand(asked))] == [1, 2]
    assert "ramp.batch_size=0.5" in capsys.readouterr().err
    points = searched(expand(asked))
    finish(points, lambda rate, seed: 1.0)
    assert outcomes(points)[0].endswith("ramp.batch_size=1 is best of 2, and a neighbour is no valid point")


def test_tokens_to_a_target_are_what_counts_where_there_is_one(tiny):
    """Between evaluations too: the three pass the target between the same two."""
    asked = [[*tiny, *SEARCH, "stop_when.loss=3", f"peak_lr={rate}"] for rate in (1e-2, 2e-2, 4e-2)]
    points = searched(expand(asked))
    for point, last, reason in zip(points, (2.9, 2.5, 3.1), ("target", "budget", "hopeless"), strict=True):
        point.folder.mkdir(parents=True)
        rows = [{"tokens": 100, "eval_loss": 4.0}, {"tokens": 200, "eval_loss": 9.0, "eval_loss_average": last}]
        (point.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (point.folder / "summary.json").write_text(json.dumps({"status": "completed", "stop_reason": reason}))
    assert [result(point) for point in points] == pytest.approx([100 * 2 ** (1 / 1.1), 100 * 2 ** (1 / 1.5), math.inf])
    assert not more(points) and "peak_lr=0.02 is best of 3" in outcomes(points)[0]


def test_a_target_of_zero_is_none(tiny):
    (point,) = expand([[*tiny, "stop_when.loss=0", "stop_when.rivals=[peak_lr]"]])
    assert point.config["stop_when"] is None and point.run_id == expand([tiny])[0].run_id


def test_branches_are_searched_and_their_parents_are_not(tiny):
    parent = "parent.overrides=[peak_lr=1e-2,total_tokens=6400]"
    asked = [[*tiny, *SEARCH, "parent.tokens=3200", parent, "peak_lr=2e-2"]]
    points, _ = run(asked, bowl(2e-2))
    rates = sorted(point.config["peak_lr"] for point in points)
    assert rates == [1e-2, 1e-2, 2e-2, 4e-2]  # one parent, and three branches of it
    assert len({point.parent for point in points} - {None}) == 1


def test_how_a_search_ended_is_said(tiny):
    points, _ = run([[*tiny, *SEARCH, "launch.search.most=4", "peak_lr=1e-2"]], lambda rate, seed: -rate)
    assert "not bracketed: launch.search.most=4 is reached" in outcomes(points)[0]
    waiting = searched(expand([[*tiny, *SEARCH, "peak_lr=5e-2"]]))
    assert "waits for 1 of 1 runs" in outcomes(waiting)[0]


def test_a_key_that_has_no_number_is_refused(tiny):
    (point,) = expand([[*tiny, "launch.search.over=[optimizer]", "optimizer=adamw"]])
    with pytest.raises(ValueError, match=r"optimizer=adamw is no number that can be searched"):
        more([point])


places = st.dictionaries(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), st.floats(-10, 10), min_size=1, max_size=8)


@given(places)
def test_what_is_missing_are_the_untried_neighbours_of_the_best(tried):
    means = {(2.0**x, 2.0**y): value for (x, y), value in tried.items()}
    best = min(means, key=lambda place: (means[place], place))
    found = missing(means, 2.0)
    assert not set(found) & set(means)
    assert {tuple(math.log2(a / b) for a, b in zip(place, best, strict=True)) for place in found} <= {
        (-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0),
    }  # fmt: skip
    assert len(found) == 4 - sum(math.dist(map(math.log2, place), map(math.log2, best)) == 1 for place in means)
