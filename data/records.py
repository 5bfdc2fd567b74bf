"""Run records: the contract between training and science, written by one process and read by everything else.

    <runs>/<experiment>/<run_id>/
        config.yaml     the resolved configuration
        run.json        identity and constants
        metrics.jsonl   one line per logged step
        lives.jsonl     one line per life of the run
        summary.json    status and final values, replaced atomically
        checkpoints/

`RunWriter` writes one run; `load_runs` gives one row per run and `load_curves` one row per logged step, from such
folders or from anybody's table (CSV, JSONL, Parquet) with a column map.
"""

import contextlib
import difflib
import fcntl
import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from data.files import flatten, read_json, read_lines, read_yaml, write_atomic, write_json

if TYPE_CHECKING:
    import pandas as pd

COMPLETED, DIVERGED, FAILED, PREEMPTED = "completed", "diverged", "failed", "preempted"
PREEMPTED_EXIT = 85  # exit code of a run or sweep that was asked to stop and can be resumed

LOCKED_EXIT = 75  # exit code of a worker that found its run being written by another process


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The logged steps of one run; refuses tokens that do not increase."""
    rows = read_lines(path)
    for before, after in itertools.pairwise(rows):
        if after["tokens"] <= before["tokens"]:
            raise ValueError(
                f"{path}: tokens fall from {before['tokens']} to {after['tokens']}; two writers were here."
            )
    return rows


# ---------------------------------------------------------------------------------------------------- lock


@contextlib.contextmanager
def lock_run(folder: Path) -> Iterator[IO[str]]:
    """Holds the folder for this process and for those that inherit the file that this gives; ValueError naming the
    holder when a live process has it."""
    with (folder / "lock").open("a+") as file:
        for attempt in range(10):  # a reader that looks who holds it has it for a moment
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == 9:
                    holder = _holder(file)
                    raise ValueError(f"{folder} is being written by {holder}: wait for it, or stop it.") from None
                time.sleep(0.1)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield file


def live_holder(folder: Path) -> str | None:
    """Who is writing this run right now ("process 123 on host"), or None."""
    path = folder / "lock"
    if not path.exists():
        return None
    with path.open("r") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _holder(file)
    return None


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read() or "another process"


# ---------------------------------------------------------------------------------------------------- processes


def end_with_parent() -> None:
    """Ends this process at once when the runner that started it is gone, however that was killed.

    FULCRUM_PARENT_PIPE is a pipe that only the runner holds open for writing: it reads as closed when the runner ends.
    """
    if "FULCRUM_PARENT_PIPE" not in os.environ:
        return
    pipe = int(os.environ.pop("FULCRUM_PARENT_PIPE"))

    def wait() -> None:
        os.read(pipe, 1)
        os._exit(PREEMPTED_EXIT)

    threading.Thread(target=wait, daemon=True).start()


# ---------------------------------------------------------------------------------------------------- writing


_KEPT = ("eval_", "excess_risk")  # what a summary keeps of the last row


class RunWriter:
    """Writes the record of one run from one process (rank 0), while it holds `lock_run`.

    `tokens` is where this life starts (0, or the checkpoint's): metrics.jsonl is first cut back to it.
    """

    def __init__(self, folder: Path, tokens: int, life: Mapping[str, Any]) -> None:
        self.folder = folder
        for cut_off in folder.glob(".*.tmp"):  # by a kill in mid-write
            cut_off.unlink()
        path = folder / "metrics.jsonl"
        self._rows: list[Mapping[str, Any]] = [row for row in read_metrics(path) if row["tokens"] <= tokens]
        write_atomic(path, "".join(_line(row) for row in self._rows))
        self._metrics = path.open("a")
        start = {**life, "tokens_start": tokens, "tokens_end": None, "exit": None}
        write_atomic(
            folder / "lives.jsonl", "".join(_line(row) for row in [*read_lines(folder / "lives.jsonl"), start])
        )

    def log(self, row: Mapping[str, Any]) -> None:
        """Appends one logged step; on disk when this returns to the operating system."""
        self._metrics.write(_line(row))
        self._metrics.flush()
        self._rows.append(row)

    def sync(self) -> None:
        """Brings the rows to the disk: a checkpoint must not outlive the rows before it."""
        os.fsync(self._metrics.fileno())

    def last(self, tokens: int) -> Mapping[str, Any]:
        """The row logged after `tokens`, where the last row is that one; else {}."""
        return self._rows[-1] if self._rows and self._rows[-1]["tokens"] == tokens else {}

    def final(self) -> dict[str, Any]:
        """The values a run ends with: `loss` is the mean over the rows of the last tenth, the others are the last."""
        if not self._rows:
            return {}
        last = self._rows[-1]
        losses = [row["loss"] for row in self._rows if row["tokens"] > 0.9 * last["tokens"]]
        kept = {key: last[key] for key in last if key in ("tokens", "flops", "seconds") or key.startswith(_KEPT)}
        return {"loss": sum(losses) / len(losses), "steps": last["step"], **kept}

    def close(self, status: str, stop_reason: str, final: Mapping[str, Any]) -> None:
        """Ends this life: summary.json holds `status`, `stop_reason` and `final`."""
        self.sync()
        self._metrics.close()
        end_life(self.folder, status)
        write_summary(self.folder, {"status": status, "stop_reason": stop_reason, **final})


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Replaces summary.json, but for the downstream errors that were added to it: no life of the run measures them.

    An empty `summary` forgets how an earlier life ended, which says nothing of the next.
    """
    path = folder / "summary.json"
    added = {key: value for key, value in read_json(path).items() if key.startswith("err.")}
    if summary or added:
        write_json(path, {**summary, **added})
    else:
        path.unlink(missing_ok=True)


def end_life(folder: Path, how: str) -> None:
    """Notes in lives.jsonl how the last life ended, and at how many logged tokens; nothing if it has ended already."""
    lives = read_lines(folder / "lives.jsonl")
    if lives and lives[-1]["exit"] is None:
        lives[-1] |= {"tokens_end": latest_row(folder).get("tokens", lives[-1]["tokens_start"]), "exit": how}
        write_atomic(folder / "lives.jsonl", "".join(_line(row) for row in lives))


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=True) + "\n"


def write_once(folder: Path, run: Mapping[str, Any]) -> None:
    """Writes run.json, or compares with the one there: a run never continues on other data or another tokenizer."""
    path = folder / "run.json"
    old = read_json(path)
    if not old:
        write_json(path, run)
    for key in ("run_id", "data_fingerprint", "heldout_fingerprint", "tokenizer_fingerprint"):
        if old and old.get(key) != run[key]:
            raise ValueError(
                f"{path} was written with {key}={old.get(key)}, and it is {run[key]} now: the run cannot go on with "
                "other content. Restore the data, or give the new run a `label` of its own."
            )


# ---------------------------------------------------------------------------------------------------- reading


def load_runs(path: str | Path, columns: Mapping[str, str] | None = None) -> "pd.DataFrame":
    """One row per run below `path`: run.json, summary.json and the configuration, flattened with dots.

    Or the rows of a CSV, JSONL or Parquet file; `columns` maps our names to the table's ({"N": "params"}).
    Adds `folder`, `D` (= tokens trained on) and `C` (= flops) to runs. `status` is "running" while a live process
    holds the run, and "unfinished" where a run was killed before it could say how it ended. D and C of a branch count
    what its weights have seen; `own_tokens` and `own_flops` are what it cost itself, without those of its `parent`
    (a run_id) up to `parent.tokens`.
    """
    import pandas as pd

    path = Path(path)
    if path.is_file():
        return _renamed(_read_table(path), columns, path)
    rows = []
    # a run that failed early has a summary but no run.json
    for folder in _folders_with(("run.json", "summary.json"), path):
        run, summary = read_json(folder / "run.json"), read_json(folder / "summary.json")
        holder = live_holder(folder)
        status = "running" if holder else summary.get("status", "unfinished")
        flat = dict(flatten(read_yaml(folder / "config.yaml")))
        row = {"run_id": folder.name} | flat | run | summary | {"status": status, "folder": str(folder)}
        row["D"], row["C"] = row.get("tokens"), row.get("flops")
        rows.append(_with_own_cost(row))
    if not rows:
        raise ValueError(f"{path} holds no runs (no run.json below it): train some first, or correct the path.")
    return _renamed(pd.DataFrame(rows), columns, path)


def _with_own_cost(row: dict[str, Any]) -> dict[str, Any]:
    """The row of a run with `own_tokens`, `own_flops`, and for a branch `parent` (its run_id) and `parent.tokens`."""
    branch, before = row.get("parent.run_id"), row.get("parent.tokens") or 0
    row = {key: value for key, value in row.items() if key not in ("parent", "parent.run_id")}
    per_token = row.get("flops_per_token")
    row["own_tokens"] = None if row["D"] is None else row["D"] - before
    row["own_flops"] = row["C"] - before * per_token if before and row["C"] is not None and per_token else row["C"]
    return row | {"parent": branch}


def load_curves(path: str | Path, columns: Mapping[str, str] | None = None, whole: bool = False) -> "pd.DataFrame":
    """One row per logged step of every run below `path` (with its `run_id`), or the rows of a table.

    A branch's curve begins where it left its parent, at step 1; where `whole`, the parent's rows come first and steps
    are counted on from there, as laws need that read a curve's past.
    """
    import pandas as pd

    path = Path(path)
    if path.is_file():
        return _renamed(_read_table(path), columns, path)
    frames = []
    for folder in _folders_with(("metrics.jsonl",), path):
        rows = _whole_curve(folder) if whole else read_metrics(folder / "metrics.jsonl")
        if rows:
            frames.append(pd.DataFrame(rows).assign(run_id=folder.name))
    if not frames:
        raise ValueError(f"{path} holds no curves (no metrics.jsonl with rows below it).")
    return _renamed(pd.concat(frames, ignore_index=True), columns, path)


def _whole_curve(folder: Path) -> list[dict[str, Any]]:
    """The logged steps of a run, after those of its parent where it is a branch."""
    rows, parent = read_metrics(folder / "metrics.jsonl"), read_json(folder / "run.json").get("parent")
    if not parent:
        return rows
    beside = folder.parent / parent["run_id"]
    past = [row for row in _whole_curve(beside) if row["tokens"] <= parent["tokens"]]
    if not past:
        raise ValueError(f"{folder} is a branch of {beside}, which has no curve up to there: restore it, or filter.")
    last = past[-1]
    left = (parent["tokens"] - last["tokens"]) * last["samples"] / last["tokens"]  # sequences that were not logged
    before = last["step"] + round(left / last["batch_size"])
    return past + [row | {"step": before + row["step"]} for row in rows]


def find_run(run: str, runs: Path) -> Path:
    """The folder of a run, given as such or as an id below `runs`. ValueError where there is none, or more than one."""
    if any((Path(run) / name).is_file() for name in _OF_A_RUN):
        return Path(run)
    known = _folders_with(_OF_A_RUN, runs)
    found = [folder for folder in known if folder.name == run]
    if len(found) > 1:
        raise ValueError(f"run={run} lies in {' and '.join(map(str, found))}: give one of these folders as run=.")
    if not found:
        near = difflib.get_close_matches(run, sorted({folder.name for folder in known}), n=3, cutoff=0.3)
        hint = f"nearest are {', '.join(near)}" if near else f"there are {len(known)} runs"
        raise ValueError(f"run={run}: no such run below {runs}; {hint}. Give a run_id with its runs=, or a folder.")
    return found[0]


def checkpoint_folder(run: Path, tokens: int) -> Path:
    """Where a run keeps its checkpoint after `tokens`; it counts once its manifest.json is there."""
    return run / "checkpoints" / f"{tokens:012d}"


def checkpoints(run: Path) -> list[int]:
    """Tokens of the checkpoints that a run has, in order."""
    return sorted(int(path.parent.name) for path in run.glob("checkpoints/[0-9]*/manifest.json"))


_OF_A_RUN = ("config.yaml", "run.json", "summary.json")


def _folders_with(names: Sequence[str], path: Path) -> list[Path]:
    """Folders below `path` with one of these files, in order, without what lies in hidden ones (copies of code)."""
    files = {file for name in names for file in path.rglob(name)}
    return sorted({f.parent for f in files if not any(part[0] == "." for part in f.relative_to(path).parts)})


def _read_table(path: Path) -> "pd.DataFrame":
    import pandas as pd

    readers = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".jsonl": lambda p: pd.read_json(p, lines=True)}
    if path.suffix not in readers:
        raise ValueError(f"{path}: a table is one of {', '.join(readers)}.")
    return readers[path.suffix](path)


def _renamed(table: "pd.DataFrame", columns: Mapping[str, str] | None, path: Path) -> "pd.DataFrame":
    for ours, theirs in (columns or {}).items():
        if theirs not in table:
            raise ValueError(f"columns.{ours}={theirs}: {path} has no such column; it has {', '.join(table.columns)}.")
        table = table.assign(**{ours: table[theirs]})
    return table


def latest_row(folder: Path) -> dict[str, Any]:
    """The last whole row of a run's metrics.jsonl, read from its end (cheap enough to poll); {} when there is none."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return {}
    try:
        return json.loads(lines[-2]) if len(lines) > 1 else {}
    except ValueError:  # longer than what was read
        return {}
