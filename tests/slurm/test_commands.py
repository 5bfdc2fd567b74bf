"""What the commands show of a sweep, and what they refuse: records as runs leave them, read by the real commands."""

import json
from pathlib import Path

import pytest

from conf.points import expand
from data.files import append_line, write_json
from slurm import manifest
from slurm.commands import changes_of, in_hours
from slurm.manifest import LOCAL

LOST, FAILED, COMPLETED = 0, 1, 2


@pytest.fixture
def recorded(tiny, tmp_path, hydra_conf) -> tuple[Path, list[str]]:
    """A sweep on this machine of three points that ended: lost, failed and completed; its folder and run_ids."""
    points = expand([[*tiny, f"seed={seed}", "launch.experiment=grid", "slurm=local"] for seed in (0, 1, 2)], "submit")
    manifest.record_points(points)
    sweep, runs = points[0].folder.parent, [point.run_id for point in points]
    runner = manifest.begin(sweep, LOCAL, runs, "1.0")
    (runner.folder / "output.log").write_text("the runner's last words\n")
    write_json(sweep / runs[FAILED] / "summary.json", {"status": "failed", "stop_reason": "OSError: the disk is full"})
    write_json(sweep / runs[COMPLETED] / "summary.json", {"status": "completed", "stop_reason": "budget"})
    for run, step in ((FAILED, 5), (COMPLETED, 34)):
        row = {"step": step, "tokens": min(6400, step * 192), "loss": 1.25, "tokens_per_second": 100.0}
        append_line(sweep / runs[run] / "metrics.jsonl", row)
        write_json(sweep / runs[run] / "run.json", {"total_tokens": 6400})
        (sweep / runs[run] / "output.log").write_text("".join(f"line {i} of {runs[run]}\n" for i in range(100)))
    return sweep, runs


# ---------------------------------------------------------------------------------------------------- status


def test_status_for_programs_counts_the_states_and_has_every_run_with_its_progress(fulcrum, recorded):
    sweep, runs = recorded
    result = fulcrum("slurm", "status", "grid", "--json")
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["sweep"] == str(sweep) and told["counts"] == {"completed": 1, "failed": 1, "lost": 1}
    assert [run["run_id"] for run in told["runs"]] == runs
    assert [run["label"] for run in told["runs"]] == ["seed=0", "seed=1", "seed=2"]
    none = {"step": None, "tokens": None, "loss": None, "total_tokens": None, "seconds_left": None, "job": None}
    assert told["runs"][LOST] == none | {
        "run_id": runs[LOST], "label": "seed=0", "state": "lost",
        "reason": "its runner on this machine is gone: the runner's last words",
    }  # fmt: skip
    assert told["runs"][FAILED] == none | {
        "run_id": runs[FAILED], "label": "seed=1", "state": "failed", "reason": "OSError: the disk is full",
        "step": 5, "tokens": 960, "loss": 1.25, "total_tokens": 6400,
    }  # fmt: skip


def test_a_damaged_file_of_one_run_does_not_hide_the_others(fulcrum, recorded):
    sweep, runs = recorded
    (sweep / runs[LOST] / "config.yaml").write_text("launch: [1,")
    (sweep / runs[COMPLETED] / "run.json").write_text('{"total_')
    result = fulcrum("slurm", "status", "grid", "--json")
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)["runs"]
    assert [run["state"] for run in told] == ["lost", "failed", "completed"] and told[FAILED]["step"] == 5
    assert told[COMPLETED]["step"] is None and told[COMPLETED]["reason"] == "budget"


def test_status_is_json_for_every_program_also_of_a_run_whose_loss_is_no_number(fulcrum, recorded):
    sweep, runs = recorded
    row = {"step": 6, "tokens": 1152, "loss": float("nan"), "tokens_per_second": 100.0}
    append_line(sweep / runs[FAILED] / "metrics.jsonl", row)

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    told = json.loads(fulcrum("slurm", "status", "grid", "--json").stdout, parse_constant=refuse)
    assert told["runs"][FAILED]["loss"] is None and told["runs"][FAILED]["step"] == 6


def test_the_table_has_a_row_per_run_and_says_what_to_do_about_those_that_did_not_get_there(fulcrum, recorded):
    _, runs = recorded
    lines = fulcrum("slurm", "status", "runs/grid").stdout.splitlines()
    rows = {line.split()[0]: line.split() for line in lines if line.startswith("r") and line.split()[0] in runs}
    assert set(rows) == set(runs)
    assert rows[runs[LOST]][1:3] == ["seed=0", "lost"] and rows[runs[LOST]][-3:] == ["runner's", "last", "words"]
    assert rows[runs[FAILED]][1:7] == ["seed=1", "failed", "5", "960", "15%", "1.2500"]
    assert " ".join(rows[runs[FAILED]][7:]) == "OSError: the disk is full", "also a long reason is not cut"
    assert rows[runs[COMPLETED]][1:] == ["seed=2", "completed", "34", "6,400", "100%", "1.2500"]
    assert lines[-2] == "3 runs: 1 completed, 1 failed, 1 lost"
    assert lines[-1].startswith("`fulcrum slurm resubmit runs/grid`")


def test_watching_ends_when_no_run_is_live(fulcrum, recorded):
    result = fulcrum("slurm", "status", "grid", "--watch", "0.1")
    assert result.returncode == 0 and "3 runs: 1 completed, 1 failed, 1 lost" in result.stdout


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3661, "1:01:01"), (1e6, "277:46:40")]
)
def test_time_is_read_at_a_glance(seconds, text):
    assert in_hours(seconds) == text


# ---------------------------------------------------------------------------------------------------- logs


def test_logs_are_the_last_lines_of_what_a_run_and_its_runner_printed(fulcrum, recorded):
    _, runs = recorded
    for name in (runs[FAILED], f"runs/grid/{runs[FAILED]}"):
        result = fulcrum("slurm", "logs", name, "-n", "3")
        assert result.returncode == 0, result.stderr
        told = [line for line in result.stdout.splitlines() if line.startswith("line ")]
        assert told == [f"line {i} of {runs[FAILED]}" for i in (97, 98, 99)]
        assert "the runner's last words" in result.stdout
    silent = fulcrum("slurm", "logs", runs[LOST])
    assert silent.stdout.strip() == "the runner's last words"


def test_logs_of_a_run_that_has_printed_nothing_say_so(fulcrum, recorded):
    sweep, runs = recorded
    next((manifest.jobs_folder(sweep)).glob("*/output.log")).unlink()
    result = fulcrum("slurm", "logs", runs[LOST])
    assert result.returncode == 1 and f"{runs[LOST]} has printed nothing yet" in result.stderr


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.mark.usefixtures("recorded")
def test_a_sweep_that_is_not_there_is_named_with_those_that_are(fulcrum):
    result = fulcrum("slurm", "status", "gird")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "gird: no sweep lies there (no sweep.json)" in result.stderr and "There is: runs/grid" in result.stderr


@pytest.mark.parametrize("command", ["resubmit", "cancel"])
def test_a_run_that_is_not_in_the_sweep_is_named(fulcrum, recorded, command):
    sweep, runs = recorded
    result = fulcrum("slurm", command, "grid", runs[0], "r0")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert f"r0: no run of {sweep}; `fulcrum slurm status` lists them" in result.stderr
    assert len(manifest.read(sweep)) == 1, "nothing was submitted"


def test_logs_of_a_run_that_is_not_there_name_the_nearest(fulcrum, recorded):
    _, runs = recorded
    result = fulcrum("slurm", "logs", runs[0][:-1])
    assert result.returncode == 1 and "no such run" in result.stderr and runs[0] in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=3"], "seed=3: only slurm.*, context.* and launch.* may change"),
        (["slurm.memory=1G"], "slurm.memory=1G: no such key"),
        (["slurm.time=90"], "slurm.time=90: write '12:00:00'"),
        (["slurm=nosuch"], "nosuch"),
        (["slurm.mem=[1"], "slurm.mem=[1"),
        (["slurm.mem=1G,2G"], "slurm.mem=1G,2G"),
        (["launch.devices=3"], "launch.devices=1, or strategy=ddp"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused_in_words(fulcrum, recorded, words, message):
    sweep, _ = recorded
    result = fulcrum("slurm", "resubmit", "grid", *words)
    assert result.returncode == 1 and message in result.stderr, result.stderr
    assert "Traceback" not in result.stderr and len(manifest.read(sweep)) == 1


# ---------------------------------------------------------------------------------------------------- changes


def test_changes_are_read_as_hydra_reads_overrides():
    assert changes_of(["slurm.mem=8G", "slurm.time=1:00:00", "slurm.nodes=2", "launch.devices=4"]) == {
        "slurm.mem": "8G", "slurm.time": "1:00:00", "slurm.nodes": 2, "launch.devices": 4,
    }  # fmt: skip
    assert changes_of(["slurm.sbatch=[--exclusive,'--constraint=a b']", "slurm.gres=null"]) == {
        "slurm.sbatch": ["--exclusive", "--constraint=a b"], "slurm.gres": None,
    }  # fmt: skip
    assert changes_of([]) == {}


def test_a_group_is_taken_whole_and_before_its_keys_wherever_it_stands():
    changes = changes_of(["slurm.mem=9G", "slurm=cpu", "strategy=fsdp"])
    assert set(changes) == {"slurm", "slurm.mem", "launch.strategy"}
    assert list(changes).index("slurm") < list(changes).index("slurm.mem")
    assert changes["slurm"]["cpus_per_task"] == 4 and changes["slurm"]["_target_"] == "slurm.resources.Slurm"
    assert changes["launch.strategy"]["_target_"].endswith("FSDP")
    assert changes_of(["slurm=local"])["slurm"]["_target_"] == "slurm.resources.Local"
