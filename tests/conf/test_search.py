"""Adaptive search: which points come next, that it ends at a bracketed optimum, and that it needs no state."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.points import expand
from conf.search import missing, more, searched

pytestmark = pytest.mark.usefixtures("hydra_conf")
SEARCH = ["launch.search.over=[peak_lr]", "eval.tokens=512"]


def finish(points, loss, status="completed"):
    """Writes how the points ended that have not: at `loss` of their peak rate and seed."""
    for point in points:
        path = point.folder / "summary.json"
        if not path.exists():
            path.parent.mkdir(parents=True)
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


def test_tokens_to_a_target_are_what_counts_where_there_is_one(tiny):
    asked = [[*tiny, *SEARCH, "stop_when.loss=3", f"peak_lr={rate}"] for rate in (1e-2, 2e-2, 4e-2)]
    points = searched(expand(asked))
    for point, tokens, reason in zip(points, (500, 400, 300), ("target", "target", "hopeless"), strict=True):
        point.folder.mkdir(parents=True)
        ended = {"status": "completed", "stop_reason": reason, "tokens": tokens, "eval_loss": 1.0}
        (point.folder / "summary.json").write_text(json.dumps(ended))
    assert not more(points)  # the middle one is best: the last did not get there


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
