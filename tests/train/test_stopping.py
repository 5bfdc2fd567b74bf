"""Runs that end before their budget: at a target loss, or beaten by a rival; killed in between, they end the same."""

import itertools
import json
import shutil

import pytest

from conf.points import expand
from data.prepare import prepare
from data.records import load_runs
from train.stopping import Stopping, evaluations

pytestmark = pytest.mark.usefixtures("hydra_conf", "one_thread")
EVERY = ["eval.every_tokens=600", "launch.checkpoint.every_tokens=1", "launch.log_every_tokens=1"]


def first(values, count):
    return list(itertools.islice(values, count))


def test_evaluations_come_at_multiples_or_at_growing_distance():
    assert first(evaluations(100, None), 4) == [100, 200, 300, 400]
    assert first(evaluations(100, 1.5), 4) == [100, 150, 225, 337.5]


@pytest.fixture
def made(tiny, cache):
    def made(*overrides):
        (point,) = expand([[*tiny, *EVERY, *overrides]])
        prepare(point.config["data"], point.config["tokenizer"], cache, processes=1)
        point.folder.mkdir(parents=True, exist_ok=True)
        return point

    return made


def summary(point):
    return json.loads((point.folder / "summary.json").read_text())


def evaluated(rows):
    return {row["tokens"]: row["eval_loss"] for row in rows if "eval_loss" in row}


def test_a_run_ends_at_the_first_evaluation_at_or_below_its_target(made, life, logged):
    whole = made()
    assert life(whole)[0] == "completed" and summary(whole)["stop_reason"] == "budget"
    losses = evaluated(logged(whole.folder))
    target = sorted(losses.values())[len(losses) // 2]
    there = next(tokens for tokens, loss in losses.items() if loss <= target)
    stopped = made(f"stop_when.loss={target!r}")
    assert stopped.run_id != whole.run_id
    assert life(stopped)[0] == "completed"
    assert summary(stopped)["stop_reason"] == "target" and summary(stopped)["tokens"] == there
    assert logged(stopped.folder) == [row for row in logged(whole.folder) if row["tokens"] <= there]


def test_an_average_that_is_there_first_counts_and_a_source_does_not(made):
    stopping = Stopping((point := made("stop_when.loss=3.5")).folder, point.config)
    assert stopping.reason({"tokens": 1, "eval_loss": 4.0, "eval_loss_tail": 3.5}) == "target"
    assert stopping.reason({"tokens": 1, "eval_loss": 4.0, "eval_loss/code": 3.0, "loss": 3.0}) is None


def test_evaluations_of_a_resumed_run_are_those_of_one_that_was_not(made, life, logged):
    point = made("eval.growth=1.3")
    life(point)
    undisturbed = logged(point.folder)
    assert list(evaluated(undisturbed))[:3] == [768, 960, 1152]  # 600, 780 and 1014 tokens, at the ends of steps of 192
    shutil.rmtree(point.folder)
    point.folder.mkdir()
    for steps in (3, 1, 9):
        assert life(point, steps)[0] == "preempted"
    life(point)
    assert logged(point.folder) == undisturbed


def test_killed_after_its_last_evaluation_it_still_ends_there(made, life, logged):
    point = made("stop_when.loss=100")
    life(point)
    rows = logged(point.folder)
    (point.folder / "summary.json").unlink()  # as if killed before it was written
    assert life(point)[0] == "completed"
    assert logged(point.folder) == rows and summary(point)["stop_reason"] == "target"


def test_who_is_beaten_gives_up_and_the_record_says_so(made, life):
    common = ["stop_when.loss=4.5", "stop_when.rivals=[peak_lr]", "stop_when.beaten_by=1.5"]
    fast, slow, other = made(*common), made(*common, "peak_lr=1e-9"), made(*common, "peak_lr=1e-9", "seed=1")
    assert fast.config["launch"]["rivals"] == slow.config["launch"]["rivals"] != other.config["launch"]["rivals"]
    life(fast)
    reached = summary(fast)["tokens"]
    assert summary(fast)["stop_reason"] == "target"
    life(slow)
    assert summary(slow)["stop_reason"] == "hopeless"
    assert 1.5 * reached <= summary(slow)["tokens"] < 1.5 * reached + 600 + 192
    life(other)
    assert summary(other)["stop_reason"] == "budget"  # a rival differs in the named keys alone
    runs = load_runs(fast.folder.parent)
    assert sorted(runs["stop_reason"]) == ["budget", "hopeless", "target"] and set(runs["status"]) == {"completed"}


def test_a_rival_that_was_there_does_not_beat_itself(made, life):
    point = made("stop_when.loss=4.5", "stop_when.rivals=[peak_lr]", "stop_when.beaten_by=1")
    life(point)
    stopping = Stopping(point.folder, point.config)
    assert stopping.reason({"eval_loss": 9.0, "tokens": 10**9}) is None
    assert stopping.reason({"loss": 1.0, "tokens": 10}) is None  # no held-out loss: not an evaluation


def test_a_run_that_is_gone_beats_nobody(made, life):
    common = ["stop_when.loss=4.5", "stop_when.rivals=[peak_lr]", "stop_when.beaten_by=1"]
    fast, slow = made(*common), made(*common, "peak_lr=1e-9")
    life(fast)
    shutil.rmtree(fast.folder)
    life(slow)
    assert summary(slow)["stop_reason"] == "budget"


def test_at_its_budget_a_run_ends_by_it_and_its_rivals_still_hear_of_it(made, life, logged):
    whole = made("eval.every_tokens=6400")
    life(whole)
    (last,) = (row["eval_loss"] for row in logged(whole.folder) if "eval_loss" in row)
    point = made(f"stop_when.loss={last!r}", "stop_when.rivals=[peak_lr]", "eval.every_tokens=6400")
    for _ in range(2):  # and once more, as if killed before its summary was written
        life(point)
        assert summary(point)["stop_reason"] == "budget"
        (point.folder / "summary.json").unlink()
    assert len(list((point.folder.parent / ".rivals").rglob("*.json"))) == 1


def test_of_several_ranks_the_first_decides(fulcrum, tiny, tmp_path):
    several = ["strategy=ddp", "launch.devices=2", "eval.every_tokens=600"]
    result = fulcrum("train", *tiny, *several, "stop_when.loss=4.5", "stop_when.rivals=[peak_lr]")
    assert result.returncode == 0, result.stderr
    (path,) = (tmp_path / "runs" / "default").glob("r*/summary.json")
    ended = json.loads(path.read_text())
    assert ended["stop_reason"] == "target" and ended["tokens"] < 6400


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["stop_when.rivals=[peak_lr]"], "give the stop_when.loss"),
        (["stop_when.loss=3", "stop_when.rivals=[peak_rate]"], "peak_rate: it is no key"),
        (["stop_when.loss=3", "stop_when.beaten_by=0.5"], "stop_when.beaten_by=0.5: use 1 or more"),
        (["eval.growth=1"], "eval.growth=1.0: use a factor above 1"),
    ],
)
def test_bad_settings_are_refused_by_name(tiny, overrides, words):
    with pytest.raises(ValueError, match=words):
        expand([[*tiny, *overrides]])


def test_no_stopping_leaves_the_run_id_as_it_was(tiny):
    asked = [expand([[*tiny, *own]])[0] for own in ([], ["stop_when.beaten_by=2"], ["stop_when=null"])]
    assert len({point.run_id for point in asked}) == 1 and asked[0].config["stop_when"] is None
