import json

import numpy as np
import pytest

from data.files import write_json
from data.records import COMPLETED, RunWriter
from optim.plan import Plan
from optim.ramps import ConstantBatch, Seesaw
from optim.schedules import Cosine
from scaling.plans import PlannedRun, describe, seconds_per_step, show

LENGTH = 16


def planned(ramp, label="one"):
    return PlannedRun(label, Plan(32000, LENGTH, 0.1, Cosine(0.1), ramp, 3200), N=500)


def record(folder, batches, seconds, repeat=4):
    """A completed run that takes `repeat` steps of each batch size, each of `seconds(batch)`."""
    folder.mkdir(parents=True)
    write_json(folder / "run.json", {"run_id": folder.name, "N": 500, "sequence_length": LENGTH})
    writer, tokens = RunWriter(folder, 0, {}), 0
    for step, batch in enumerate(np.repeat(batches, repeat).tolist(), 1):
        tokens += batch * LENGTH
        speed = batch * LENGTH / seconds(batch)
        writer.log({"step": step, "tokens": tokens, "batch_size": batch, "loss": 1.0, "tokens_per_second": speed})
    writer.close(COMPLETED, "budget", {"tokens": tokens})


def test_json_has_steps_final_tokens_and_segments_of_the_plan(capsys):
    run = planned(Seesaw(4, 1.3))
    show([run], "json")
    told = json.loads(capsys.readouterr().out)
    steps = run.plan.steps()
    assert told["serial_steps"] == len(steps.lr) and told["final_tokens"] == 32000
    assert sum(segment["steps"] for segment in told["segments"]) == told["serial_steps"]
    lr = dict(zip(steps.tokens_before.tolist(), steps.lr.tolist(), strict=True))
    assert all(segment["lr"] == lr[segment["tokens"]] for segment in told["segments"])
    assert told["steps_saved"] == pytest.approx(1 - told["serial_steps"] / 500)
    assert told["seconds"] is None
    show([run, planned(ConstantBatch(4), "two")], "json")
    assert [row["label"] for row in json.loads(capsys.readouterr().out)] == ["one", "two"]


def test_seconds_saved_follow_from_measured_seconds_per_step(tmp_path):
    def seconds(batch):
        return 0.5 + 0.25 * batch  # seconds grow linearly, so interpolation is exact

    run = planned(Seesaw(4, 2.0))
    biggest = int(run.plan.segments.batch_size.max())
    record(tmp_path / "a", [4, 10, biggest], seconds)
    measured = seconds_per_step(str(tmp_path), run)
    assert measured == pytest.approx({batch: seconds(batch) for batch in (4, 10, biggest)})
    told = describe(run, measured)
    expected = sum(s["steps"] * seconds(s["batch_size"]) for s in told["segments"])
    assert told["seconds"] == pytest.approx(expected)
    assert told["seconds_saved"] == pytest.approx(1 - expected / (500 * seconds(4)))


def test_the_tail_of_a_ramp_counts_as_measured_although_each_batch_is_taken_once(tmp_path):
    """The records of a run are enough to time its own plan."""
    run = planned(Seesaw(4, 1.5))
    sizes = run.plan.steps().batch_size.tolist()
    record(tmp_path / "a", sizes, lambda batch: 0.5 + 0.25 * batch, repeat=1)
    told = describe(run, seconds_per_step(str(tmp_path), run))
    assert told["seconds"] == pytest.approx(sum(0.5 + 0.25 * size for size in sizes), rel=0.02)


def test_no_time_is_promised_for_batches_that_were_not_measured(tmp_path, capsys):
    run = planned(Seesaw(4, 2.0))
    record(tmp_path / "a", [4, 10], lambda batch: 1.0)
    show([run], records=str(tmp_path))
    told = capsys.readouterr()
    assert "seconds" not in told.out and "no time is estimated, it needs batches of 4 to" in told.err
    other = PlannedRun("one", run.plan, N=501)
    with pytest.raises(ValueError, match="no completed run with N=501 and sequence_length=16"):
        seconds_per_step(str(tmp_path), other)


@pytest.mark.parametrize("kind", ["svg", "png", "pdf", "html"])
def test_the_picture_is_written_as_its_name_says(tmp_path, capsys, kind):
    ramp = planned(Seesaw(4))
    show([ramp, planned(ConstantBatch(4), "two")], out=str(tmp_path / f"plan.{kind}"))
    start = {"svg": b"<svg", "png": b"\x89PNG", "pdf": b"%PDF", "html": b"<!DOCTYPE html>"}[kind]
    assert (tmp_path / f"plan.{kind}").read_bytes().lstrip().startswith(start)
    assert f"{describe(ramp, {})['steps_saved']:.1%}" in capsys.readouterr().out


def test_bad_options_are_refused(tmp_path):
    with pytest.raises(ValueError, match="format=xml: use table or json"):
        show([planned(Seesaw(4))], "xml")
    with pytest.raises(ValueError, match=r"a picture is one of \.svg"):
        show([planned(Seesaw(4))], out=str(tmp_path / "plan.jpg"))


def test_a_run_that_overshoots_its_budget_says_so(capsys):
    run = planned(Seesaw(4, rounding="reference"))
    show([run])
    assert f"ends {run.plan.final_tokens - 32000} tokens after its budget of 32000" in capsys.readouterr().out
