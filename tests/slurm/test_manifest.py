"""The file that says what was ever submitted: whatever a kill leaves of it is read as what happened before."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.points import expand
from data.files import append_line, read_lines
from slurm import manifest
from slurm.manifest import LOCAL, SLURM, VERSION

# ---------------------------------------------------------------------------------------------------- append_line

ROWS = st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=9) | st.integers() | st.none(), max_size=3))


@given(ROWS, ROWS)
def test_rows_that_are_appended_are_read_back_in_order(tmp_path_factory, before, after):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    for row in [*before, *after]:
        append_line(path, row)
    assert read_lines(path) == [*before, *after]


@given(ROWS.filter(bool), st.data())
def test_a_row_after_a_kill_at_any_byte_follows_the_whole_rows_before_it(tmp_path_factory, rows, data):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    for row in rows:
        append_line(path, row)
    whole = path.read_bytes()
    size = data.draw(st.integers(0, len(whole)), label="bytes that the kill left")
    path.write_bytes(whole[:size])
    left = rows[: whole[:size].count(b"\n")]
    assert read_lines(path) == left
    append_line(path, {"next": 1})
    assert read_lines(path) == [*left, {"next": 1}]


def test_a_row_after_one_of_any_length_that_was_cut_off_is_whole(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_line(path, {"first": 1})
    path.write_bytes(path.read_bytes() + b'{"long": "' + b"x" * 100_000)
    append_line(path, {"second": 2})
    assert path.read_text() == '{"first": 1}\n{"second": 2}\n'


# ---------------------------------------------------------------------------------------------------- submissions


def sweep_with_events(sweep: Path) -> list[dict]:
    """A manifest with each kind of event, written as the commands write it; its lines."""
    array = manifest.begin(sweep, SLURM, ["ra", "rb"], "1.0")
    manifest.note(sweep, {"submission": array.id, "job": "12"})
    refused = manifest.begin(sweep, SLURM, ["rc"], "1.0")
    manifest.note(sweep, {"submission": refused.id, "void": True})
    runner = manifest.begin(sweep, LOCAL, ["rc"], "1.1")
    manifest.note(sweep, {"submission": array.id, "cancelled": ["rb"]})
    manifest.note(sweep, {"submission": array.id, "cancelled": ["ra"]})
    manifest.note(sweep, {"submission": runner.id, "cancelled": ["rc"]})
    return read_lines(manifest.jobs_folder(sweep) / "manifest.jsonl")


def test_submissions_are_read_back_with_all_that_became_of_them(tmp_path):
    sweep_with_events(tmp_path)
    array, refused, runner = manifest.read(tmp_path)
    assert (array.kind, array.run_ids, array.job, array.void) == (SLURM, ["ra", "rb"], "12", False)
    assert array.cancelled == {"ra", "rb"} and array.task("rb") == "12_1" and array.cwd == str(Path.cwd())
    assert refused.void and refused.job is None and not refused.cut_off
    assert (runner.kind, runner.code, runner.cancelled, runner.cut_off) == (LOCAL, "1.1", {"rc"}, False)
    assert array.folder.is_dir() and len({array.folder, refused.folder, runner.folder}) == 3


@given(st.data())
def test_a_kill_at_any_byte_of_the_manifest_leaves_what_was_submitted_before(tmp_path_factory, data):
    sweep = tmp_path_factory.mktemp("sweep")
    events = sweep_with_events(sweep)
    path = manifest.jobs_folder(sweep) / "manifest.jsonl"
    whole = path.read_bytes()
    size = data.draw(st.integers(0, len(whole)), label="bytes that the kill left")
    path.write_bytes(whole[:size])
    left = events[: whole[:size].count(b"\n")]
    submitted = [event["submission"] for event in left[1:] if "kind" in event]
    found = manifest.read(sweep)
    assert [s.id for s in found] == submitted
    for submission in found:
        mine = [event for event in left[1:] if event["submission"] == submission.id]
        assert submission.job == next((event["job"] for event in mine if "job" in event), None)
        assert submission.void == any("void" in event for event in mine)
        assert submission.cancelled == {run for event in mine for run in event.get("cancelled", [])}
        unanswered = submission.kind == SLURM and not any({"job", "void"} & set(event) for event in mine)
        assert submission.cut_off == unanswered

    new = manifest.begin(sweep, SLURM, ["rd"], "2.0")
    assert [s.id for s in manifest.read(sweep)] == [*submitted, new.id], "the next submission is read back"
    assert read_lines(path)[0] == {"version": VERSION}


def test_a_manifest_of_another_version_is_refused_and_stays_as_it_is(tmp_path):
    sweep_with_events(tmp_path)
    path = manifest.jobs_folder(tmp_path) / "manifest.jsonl"
    path.write_text(path.read_text().replace('"version": 1', '"version": 7'))
    with pytest.raises(ValueError, match=r"manifest.jsonl has version 7, this Fulcrum writes version 1: .*experiment"):
        manifest.read(tmp_path)


def test_a_sweep_without_a_manifest_was_never_submitted(tmp_path):
    assert manifest.read(tmp_path) == []


def test_one_process_at_a_time_decides_what_is_submitted(tmp_path):
    with manifest.locked(tmp_path), pytest.raises(ValueError, match="is being written by process"):  # noqa: SIM117
        with manifest.locked(tmp_path):
            pass
    with manifest.locked(tmp_path):
        pass


# ---------------------------------------------------------------------------------------------------- points


@pytest.fixture
def sweep(tiny, hydra_conf):
    """A recorded sweep of two points, and its folder."""
    points = expand([[*tiny, f"seed={seed}", "slurm=cpu"] for seed in (0, 1)], "submit")
    manifest.record_points(points)
    return points, points[0].folder.parent


def test_points_of_recorded_runs_are_the_points_that_were_submitted(sweep):
    points, folder = sweep
    assert manifest.run_ids(folder) == [point.run_id for point in points]
    again = manifest.points_of(folder, [point.run_id for point in points])
    assert [(p.run_id, p.folder, p.config) for p in again] == [(p.run_id, p.folder, p.config) for p in points]


def test_changes_reach_how_a_run_is_run_and_nothing_else(sweep):
    points, folder = sweep
    changes = {"slurm.mem": "2G", "launch.devices": 2, "launch.checkpoint.every_tokens": 640}
    changes["launch.strategy"] = {"_target_": "train.strategies.DDP"}
    (changed,) = manifest.points_of(folder, [points[1].run_id], changes)
    assert changed.run_id == points[1].run_id and changed.folder == points[1].folder
    assert changed.config["slurm"] == points[1].config["slurm"] | {"mem": "2G"}
    assert changed.config["launch"]["devices"] == 2 and changed.config["launch"]["checkpoint"]["every_tokens"] == 640
    assert changed.config["launch"]["strategy"] == {"_target_": "train.strategies.DDP"}
    differ = [key for key in changed.config if changed.config[key] != points[1].config[key]]
    assert differ == ["slurm", "launch"]


def test_a_whole_group_is_replaced_before_its_keys(sweep):
    points, folder = sweep
    local = {"_target_": "slurm.resources.Local"}
    (changed,) = manifest.points_of(folder, [points[0].run_id], {"slurm": local})
    assert changed.config["slurm"] == local and changed.run_id == points[0].run_id


@pytest.mark.parametrize("key", ["seed", "peak_lr", "model.d_model", "data.heldout", "label"])
def test_a_change_of_what_a_run_is_is_refused(sweep, key):
    points, folder = sweep
    with pytest.raises(
        ValueError, match=rf"{key}=3: only slurm\.\*, context\.\* and launch\.\* may change, all else is anot"
    ):
        manifest.points_of(folder, [points[0].run_id], {key: 3})


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("slurm.memory", r"slurm\.memory=3: no such key; there is .*mem, "),
        ("launch.thread", r"launch\.thread=3: no such key; there is .*threads"),
        ("slurm.memory.max", r"slurm\.memory\.max=3: no such key; "),
        ("slurm.mem.max", r"slurm\.mem\.max=3: no such key; "),
        ("slurm.nodes", "launch.devices=1 does not spread evenly"),
        ("slurm.time", r"slurm\.time=3: write '12:00:00'"),
    ],
)
def test_a_change_to_nothing_that_there_is_is_refused(sweep, key, message):
    from slurm.submit import groups_of

    points, folder = sweep
    with pytest.raises(ValueError, match=message):
        groups_of(manifest.points_of(folder, [points[0].run_id], {key: 3}))


def test_a_moved_sweep_is_found_where_it_lies_now(sweep, tmp_path):
    points, folder = sweep
    moved = folder.rename(tmp_path / "elsewhere")
    (point,) = manifest.points_of(moved, [points[0].run_id])
    assert point.folder == moved / points[0].run_id and point.run_id == points[0].run_id


def test_a_run_without_a_configuration_is_named(sweep):
    points, folder = sweep
    (points[0].folder / "config.yaml").unlink()
    with pytest.raises(ValueError, match=rf"{points[0].run_id} has no config.yaml: run the sweep's own command again"):
        manifest.points_of(folder, [points[0].run_id])


def test_a_run_of_before_there_was_slurm_can_be_handed_over(sweep):
    import yaml

    points, folder = sweep
    old = {key: value for key, value in points[0].config.items() if key != "slurm"}
    (points[0].folder / "config.yaml").write_text(yaml.safe_dump(old))
    (point,) = manifest.points_of(folder, [points[0].run_id], {"slurm.mem": "1G"})
    assert point.config["slurm"]["mem"] == "1G" and point.run_id == points[0].run_id


def test_a_wider_grid_adds_its_points_and_a_completed_run_keeps_its_configuration(sweep, tiny):
    points, folder = sweep
    (points[0].folder / "summary.json").write_text(json.dumps({"status": "completed"}))
    before = (points[0].folder / "config.yaml").read_text()
    wider = expand([[*tiny, f"seed={seed}", "slurm=cpu", "slurm.mem=1G"] for seed in (0, 1, 2)], "submit")
    manifest.record_points(wider)
    assert manifest.run_ids(folder) == [point.run_id for point in wider]
    assert (points[0].folder / "config.yaml").read_text() == before
    assert "mem: 1G" in (points[1].folder / "config.yaml").read_text()
