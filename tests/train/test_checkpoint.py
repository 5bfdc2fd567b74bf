"""Checkpoints on disk: committed whole, checked, kept by rules, written beside training, and what breaks is named."""

import json
import shutil
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from hypothesis import given
from hypothesis import strategies as st

from train import checkpoint
from train.checkpoint import Checkpoints, damage, newest, read_weights, retired
from train.fragments import overlaps
from train.run import build_run

RUN = ["launch.log_every_tokens=1", "launch.checkpoint.every_tokens=1000"]

pytestmark = pytest.mark.usefixtures("hydra_conf", "one_thread")


def checkpoints(point):
    return sorted(path.name for path in (point.folder / "checkpoints").iterdir())


# ---------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("file", [".metadata", "__0_0.distcp", "manifest.json"])
@pytest.mark.parametrize("how", ["a byte flipped", "missing", "cut off"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(life, make, logged, capsys, file, how):
    point = make()
    life(point)
    undisturbed = logged(point.folder)
    path = point.folder / "checkpoints" / checkpoints(point)[-1] / file
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content if how == "a byte flipped" else content[: len(content) // 2])
    problem = damage(path.parent)
    assert problem is not None and ("manifest" in problem or file in problem or "format" in problem)
    status, _run = life(point)
    assert f"{path.parent.name} is damaged ({problem}); the one before it is used" in capsys.readouterr().err
    assert status == "completed" and logged(point.folder) == undisturbed
    assert damage(path.parent) is None  # written again, whole


def test_a_flipped_bit_anywhere_in_a_manifest_is_found(life, make):
    point = make()
    life(point, 5)
    path = newest(point.folder / "checkpoints") / "manifest.json"
    whole = path.read_bytes()
    for position in range(len(whole)):
        for bit in (1, 16, 128):
            content = bytearray(whole)
            content[position] ^= bit
            if json_or_none(content) != json.loads(whole):  # a space that became another says the same
                path.write_bytes(content)
                assert damage(path.parent) is not None, (position, bit)
    path.write_bytes(whole)
    assert damage(path.parent) is None


def json_or_none(content):
    try:
        return json.loads(content)
    except ValueError:
        return None


def test_a_damaged_checkpoint_does_not_push_out_a_good_one(life, make):
    """The newest is damaged, the run goes on from the one before and is stopped between them: what it saves stays."""
    point = make("run", "launch.checkpoint.keep=1", "launch.checkpoint.keep_every_tokens=1000")
    life(point)
    last = checkpoints(point)[-1]
    (point.folder / "checkpoints" / last / "manifest.json").write_text("{")
    before = int(newest(point.folder / "checkpoints").name)
    assert life(point, 1)[0] == "preempted"
    kept = newest(point.folder / "checkpoints")
    assert before < int(kept.name) < int(last)


def test_a_checkpoint_of_another_format_is_named(life, make, capsys):
    point = make()
    life(point, 5)
    path = newest(point.folder / "checkpoints")
    manifest = {**json.loads((path / "manifest.json").read_text()), "format": 99}
    del manifest["checksum"]
    (path / "manifest.json").write_text(json.dumps({**manifest, "checksum": checkpoint._digest(manifest)}))
    assert newest(point.folder / "checkpoints") != path
    assert "its format is 99, this version reads 1" in capsys.readouterr().err


def test_what_a_kill_left_of_a_checkpoint_does_not_count_and_goes(life, make, logged):
    point = make()
    life(point, 9)
    folder = point.folder / "checkpoints"
    good = newest(folder)
    shutil.copytree(good, folder / ".000000009999.tmp")
    assert newest(folder) == good
    assert life(point)[0] == "completed"
    assert not list(folder.glob(".*"))


def test_a_checkpoint_of_another_model_is_not_loaded_in_part(life, make):
    small, large = make("small"), make("large", "model.n_layers=3")
    life(small, 3)
    run = build_run(large.config, large.folder)
    with pytest.raises(ValueError, match=r"does not hold all of model/blocks\.2"):
        checkpoint.load(newest(small.folder / "checkpoints"), run.engine, None)


# ---------------------------------------------------------------------------------------------------- kept ones


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=30),
    st.integers(1, 4),
    st.none() | st.floats(5, 200),
    st.sets(st.integers(1, 600), max_size=3),
)
def test_the_newest_the_first_of_every_interval_and_the_marks_are_kept(gaps, keep, every, marks):
    there: list[Path] = []
    saved, tokens = [], 0
    for gap in gaps:
        tokens += gap
        saved.append(tokens)
        there = [Path(f"{tokens:012d}"), *there]
        gone = retired(there, keep, every, marks)
        there = [path for path in there if path not in gone]
    kept = {int(path.name) for path in there}
    first_of = {t for before, t in zip([0, *saved], saved, strict=False) if every and t // every > before // every}
    assert kept == set(saved[-keep:]) | (marks & set(saved)) | first_of


def test_marks_are_saved_exactly_and_stay(life, make):
    point = make("run", "launch.checkpoint.keep=1", "launch.checkpoint.marks=[1536,3000]")
    life(point)
    assert checkpoints(point) == ["000000001536", "000000002880", "000000006400"]  # rounded down to the end of a step


# ---------------------------------------------------------------------------------------------------- writing


def test_training_goes_on_while_bytes_are_written(life, make, monkeypatch):
    """A disk that takes no bytes until it is told to: the save returns, what it saved is what was there then."""
    run = life(make(), 3)[1]
    released, save = threading.Event(), dcp.save
    monkeypatch.setattr(dcp, "save", lambda *args, **kwargs: released.wait(30) and save(*args, **kwargs))
    saver = Checkpoints(run.folder / "slow", 2, None, [], timedelta(seconds=60))
    (piece, *_) = next(iter(run.engine.groups()))
    before = piece.weights.clone()
    started = time.monotonic()
    saver.save(64, run.engine, run.averages, {"seconds": 0.0})
    assert time.monotonic() - started < 5 and newest(run.folder / "slow") is None
    piece.weights.fill_(7.0)  # an update, while the copy waits to be written
    released.set()
    saver.wait()
    path = newest(run.folder / "slow")
    assert path.name == "000000000064"
    torch.testing.assert_close(read_weights(path)[piece.name], before, rtol=0, atol=0)


LIFE_WITH_SMALL_FILES = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
from train.__main__ import main
sys.exit(main(Path(sys.argv[1])))
"""


def test_a_disk_that_is_full_is_named_and_costs_nothing_but_time(life, make, logged):
    """The system refuses to write a file further than 40 kB: metrics fit, a checkpoint does not."""
    whole, point = make("whole"), make("full", "launch.checkpoint.every_tokens=2000")
    life(whole)
    assert life(point, 12)[0] == "preempted"
    last = newest(point.folder / "checkpoints")
    (point.folder / "config.yaml").write_text(yaml.safe_dump(point.config))
    small = max(path.stat().st_size for path in last.iterdir()) // 2
    ended = subprocess.run(
        [sys.executable, "-c", LIFE_WITH_SMALL_FILES, str(point.folder), str(small)], text=True, capture_output=True
    )
    assert ended.returncode == 1
    assert "could not be written to" in ended.stderr and "File too large" in ended.stderr
    assert f"the last good one, {last.name}, is untouched" in ended.stderr
    summary = json.loads((point.folder / "summary.json").read_text())
    assert summary["status"] == "failed" and "File too large" in summary["stop_reason"]
    assert newest(point.folder / "checkpoints") == last and not list((point.folder / "checkpoints").glob(".*"))
    assert life(point)[0] == "completed"  # there is room again
    assert logged(point.folder) == logged(whole.folder)


def test_a_folder_that_cannot_be_written_is_named(life, make, logged):
    whole, point = make("whole"), make("blocked")
    life(whole)
    (point.folder / "checkpoints").write_text("in the way")
    with pytest.raises(OSError, match=r"could not be written to .*checkpoints.*there is no earlier one"):
        life(point)
    (point.folder / "checkpoints").unlink()
    assert life(point)[0] == "completed" and logged(point.folder) == logged(whole.folder)


# ---------------------------------------------------------------------------------------------------- fragments


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.data())
def test_any_pieces_make_up_any_others(sizes, data):
    saved, start = [], 0
    for i, size in enumerate(sizes):
        saved.append((start, size, f"piece{i}"))
        start += size
    whole = torch.arange(start)
    begin = data.draw(st.integers(0, start - 1))
    numel = data.draw(st.integers(1, start - begin))
    ours = torch.full((numel,), -1)
    pieces = {key: whole[first : first + size] for first, size, key in saved}
    for key, theirs, mine in overlaps(begin, numel, data.draw(st.permutations(saved))):
        ours[mine] = pieces[key][theirs]
    assert ours.tolist() == whole[begin : begin + numel].tolist()


@given(st.integers(0, 3))
def test_a_gap_between_pieces_is_an_error(missing):
    saved = [(i * 5, 5, str(i)) for i in range(4) if i != missing]
    with pytest.raises(ValueError, match=f"elements {missing * 5} to 20 are missing"):
        list(overlaps(0, 20, saved))
