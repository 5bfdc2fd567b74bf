"""Checkpoints of one run: the same files whatever the strategy and the world size, written while training goes on.

    checkpoints/
        000001048576/            tokens seen
            __0_0.distcp ...     fragments of weights, optimizer state and averages (torch.distributed.checkpoint)
            .metadata            which fragment lies where
            manifest.json        counters and checksums, written last: a folder without it does not count

    model/<parameter>@<start>               float32, a piece of the flat parameter
    optimizer/<parameter>/<key>@<start>     state with a number per weight, in the same pieces
    optimizer/<parameter>/<key>             any other state of the parameter; <key># where it counts
    averages/<name>/<parameter>@<start>

A process writes the pieces that it holds (`train.fragments`) and reads the pieces that make up what it holds, so any
strategy and world size goes on from any other. Nothing about schedules, data order or random numbers is stored: they
follow from the tokens seen.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from data.files import read_json, write_json
from train.fragments import Fragment, overlaps

if TYPE_CHECKING:
    from train.averages import Averages
    from train.engine import Engine

warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process saves and loads too

FORMAT = 1
AT_ONCE = 2**30  # bytes that are read before they are put in their places

# ---------------------------------------------------------------------------------------------------- writing


class Checkpoints:
    """Saves one run's checkpoints. All ranks make the same calls.

    `keep` newest are kept, of every `keep_every` tokens the first, and those at `marks`.
    """

    def __init__(
        self, folder: Path, keep: int, keep_every: float | None, marks: Iterable[int], timeout: timedelta
    ) -> None:
        self.folder, self.keep, self.keep_every, self.marks = folder, keep, keep_every, set(marks)
        self._is_first, self._group = True, None
        if dist.is_initialized():  # a group of its own: written beside training, and from the CPU's memory
            self._is_first, self._group = dist.get_rank() == 0, dist.new_group(backend="gloo", timeout=timeout)
        self._life = _of_first_rank(time.time_ns(), self._group)  # a rank that outlives a killed life writes elsewhere
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[int, Future[None]] | None = None
        if self._is_first:
            for cut_off in folder.glob(".*.tmp"):  # by a kill in mid-write
                shutil.rmtree(cut_off, ignore_errors=True)

    def save(self, tokens: int, engine: "Engine", averages: "Averages", counters: Mapping[str, Any]) -> None:
        """Copies what this process holds to the CPU's memory, and writes it in the background.

        Waits for the one before, whose failure is an OSError here.
        """
        self.wait()
        state = {key: value.to("cpu", copy=True) for key, value in _held(engine, averages)}
        self._pending = tokens, self._writer.submit(self._write, tokens, state, dict(counters))

    def wait(self) -> None:
        """Until the last checkpoint is on disk. OSError, with its tokens and the reason, where it could not be."""
        if self._pending is None:
            return
        (tokens, future), self._pending = self._pending, None
        try:
            future.result()
        except Exception as error:
            shutil.rmtree(self._temporary(tokens), ignore_errors=True)
            last = next((path.name for path in _folders(self.folder)), None)
            kept = f"the last good one, {last}, is untouched" if last else "there is no earlier one"
            raise OSError(
                f"the checkpoint at {tokens} tokens could not be written to {self.folder}: {error}; {kept}."
            ) from error

    def _write(self, tokens: int, state: dict[str, Tensor], counters: dict[str, Any]) -> None:
        temporary, final = self._temporary(tokens), self._final(tokens)
        temporary.mkdir(parents=True, exist_ok=True)
        writer = dcp.FileSystemWriter(temporary, sync_files=True)
        with own_errors():  # every rank's files are whole when the first returns
            metadata = dcp.save(state, storage_writer=writer, process_group=self._group, no_dist=self._group is None)
        if not self._is_first:
            return
        names = {".metadata"} | {info.relative_path for info in (metadata.storage_data or {}).values()}
        files = _checksums(temporary / name for name in sorted(names))  # a file that is not seen from here fails
        manifest = {"format": FORMAT, "tokens": tokens, **counters, "files": files}
        write_json(temporary / "manifest.json", manifest | {"checksum": _digest(manifest)})
        shutil.rmtree(final, ignore_errors=True)  # what another life left here at the same tokens
        _sync(temporary)
        os.replace(temporary, final)
        _sync(self.folder)
        # those after it are of a life that was cut off, or damaged: they push out none that can be used
        there = [path for path in _folders(self.folder) if int(path.name) <= tokens]
        for old in retired(there, self.keep, self.keep_every, self.marks):
            shutil.rmtree(old)

    def _final(self, tokens: int) -> Path:
        return self.folder / f"{tokens:012d}"

    def _temporary(self, tokens: int) -> Path:
        return self.folder / f".{tokens:012d}.{self._life}.tmp"


def retired(folders: list[Path], keep: int, keep_every: float | None, marks: set[int]) -> list[Path]:
    """Of checkpoint folders, newest first, those that no rule keeps."""
    old = []
    for folder, before in list(itertools.pairwise([*folders, None]))[keep:]:
        assert folder is not None
        tokens, earlier = int(folder.name), int(before.name) if before else 0
        first_of_interval = keep_every is not None and tokens // keep_every > earlier // keep_every
        if tokens not in marks and not first_of_interval:
            old.append(folder)
    return old


def _held(engine: "Engine", averages: "Averages") -> Iterable[tuple[str, Tensor]]:
    for fragments in engine.groups():
        for piece in fragments:
            yield f"model/{piece.name}@{piece.start}", piece.weights
            for key, value in piece.elementwise().items():
                yield f"optimizer/{piece.name}/{key}@{piece.start}", value
            for key, value in piece.other().items():
                if isinstance(value, Tensor):
                    yield f"optimizer/{piece.name}/{key}", value
                else:
                    assert isinstance(value, int), (key, value)
                    yield f"optimizer/{piece.name}/{key}#", torch.tensor(value)
            for name, value in averages.of(piece).items():
                yield f"averages/{name}/{piece.name}@{piece.start}", value


@contextlib.contextmanager
def own_errors() -> Iterator[None]:
    """torch wraps what happened on each rank into what no `except Exception` sees; here it is an OSError."""
    try:
        yield
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise OSError(f"{cause or type(cause).__name__} (rank {rank})") from error


# ---------------------------------------------------------------------------------------------------- reading


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint under `folder`; None without one. A damaged one is named and passed over."""
    for candidate in _folders(folder):
        problem = damage(candidate)
        if problem is None:
            return candidate
        print(f"warning: checkpoint {candidate} is damaged ({problem}); the one before it is used.", file=sys.stderr)
    return None


def damage(candidate: Path) -> str | None:
    """What is wrong with a checkpoint's files; None where they are what was written."""
    try:
        manifest = read_json(candidate / "manifest.json")
        if not manifest:
            return "no manifest"
        if "checksum" not in manifest:
            return f"its format is older, this version reads {FORMAT}"
        if manifest.pop("checksum") != _digest(manifest) or manifest["tokens"] != int(candidate.name):
            return "its manifest is not what was written"
        if manifest["format"] != FORMAT:
            return f"its format is {manifest['format']}, this version reads {FORMAT}"
        for name in manifest["files"]:
            if not (candidate / name).exists():
                return f"{name} is missing"
        found = _checksums(candidate / name for name in manifest["files"])
    except ValueError:
        return "its manifest is not valid JSON"
    except OSError as error:
        return str(error)
    return next((f"checksum of {name} differs" for name in found if found[name] != manifest["files"][name]), None)


def load(path: Path, engine: "Engine", averages: "Averages | None") -> dict[str, Any]:
    """Brings weights, optimizer state and averages (None: they are not asked for) of a whole checkpoint into this
    process's fragments, and gives the counters. ValueError where it is of another model, optimizer or averages."""
    saved = Saved(path)
    for fragments in engine.groups(write=True):
        wanted = saved.reader()
        for piece in fragments:
            wanted = wanted if wanted.bytes < AT_ONCE else wanted.read()
            wanted.fill(f"model/{piece.name}", piece.start, piece.weights)
            for key in saved.pieces_below(f"optimizer/{piece.name}/"):
                wanted.fill(f"optimizer/{piece.name}/{key}", piece.start, piece.make(key))
            for key in saved.whole_below(f"optimizer/{piece.name}/"):
                wanted.put(f"optimizer/{piece.name}/{key}", piece, key)
            for name, value in (averages.of(piece) if averages else {}).items():
                wanted.fill(f"averages/{name}/{piece.name}", piece.start, value)
        wanted.read()
    return read_json(path / "manifest.json")


def read_weights(path: Path, average: str | None = None) -> dict[str, Tensor]:
    """All weights of a whole checkpoint, or those of an average, flat float32 on the CPU by parameter name."""
    saved = Saved(path)
    prefix = f"averages/{average}/" if average else "model/"
    names = saved.pieces_below(prefix)
    if not names:
        there = sorted({key.split("/")[1] for key in saved.pieces if key.startswith("averages/")})
        raise ValueError(f"{path} holds no average {average!r}; it has {', '.join(there) or 'none'}.")
    wanted = saved.reader()
    weights = {name: torch.empty(saved.numel(prefix + name)) for name in names}
    for name, value in weights.items():
        wanted.fill(prefix + name, 0, value)
    wanted.read()
    return weights


class Saved:
    """What a checkpoint holds, from its metadata."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, TensorStorageMetadata] = {}
        self.pieces: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
        for key, entry in dcp.FileSystemReader(path).read_metadata().state_dict_metadata.items():
            assert isinstance(entry, TensorStorageMetadata)
            self.entries[key] = entry
            name, at, start = key.partition("@")
            if at:
                self.pieces[name].append((int(start), entry.size.numel(), key))

    def pieces_below(self, prefix: str) -> list[str]:
        return [name.removeprefix(prefix) for name in self.pieces if name.startswith(prefix)]

    def whole_below(self, prefix: str) -> list[str]:
        return [key.removeprefix(prefix) for key in self.entries if key.startswith(prefix) and "@" not in key]

    def numel(self, name: str) -> int:
        return max(start + numel for start, numel, _ in self.pieces[name])

    def reader(self) -> "Reader":
        return Reader(self)


class Reader:
    """Collects what is wanted of a checkpoint, then reads it at once."""

    def __init__(self, saved: Saved) -> None:
        self.saved = saved
        self.buffers: dict[str, Tensor] = {}
        self.copies: list[tuple[Tensor, str, slice]] = []
        self.wholes: list[tuple[str, Fragment, str]] = []

    def fill(self, name: str, start: int, target: Tensor) -> None:
        """`target` is to hold elements [start, start + numel) of the flat tensor `name`."""
        try:
            for key, theirs, ours in overlaps(start, target.numel(), self.saved.pieces[name]):
                self.copies.append((target[ours], key, theirs))
                self._buffer(key)
        except ValueError as error:
            raise ValueError(f"{self.saved.path} does not hold all of {name}: {error}.") from None

    def put(self, name: str, piece: Fragment, key: str) -> None:
        """The tensor or number `name` is to be `key` of the piece's state."""
        self._buffer(name)
        self.wholes.append((name, piece, key))

    def _buffer(self, key: str) -> Tensor:
        if key not in self.buffers:
            entry = self.saved.entries[key]
            self.buffers[key] = torch.empty(entry.size, dtype=entry.properties.dtype)
        return self.buffers[key]

    @property
    def bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers.values())

    @torch.no_grad()
    def read(self) -> "Reader":
        """Fills all that was asked for; a new reader for what comes next."""
        reader = dcp.FileSystemReader(self.saved.path)
        with own_errors():
            dcp.load(self.buffers, storage_reader=reader, no_dist=True)
        for target, key, theirs in self.copies:
            target.copy_(self.buffers[key][theirs])
        for name, piece, key in self.wholes:
            value = self.buffers[name].clone()
            if key.endswith("#"):
                piece.state[key.removesuffix("#")] = value.item()
            else:  # counters stay on the CPU, where torch's optimizers have them
                piece.state[key] = value.to(piece.holder.device) if value.ndim else value
        return self.saved.reader()


# ---------------------------------------------------------------------------------------------------- files


def _folders(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted((p for p in folder.glob("[0-9]*") if p.is_dir()), reverse=True)


def _checksums(paths: Iterable[Path]) -> dict[str, str]:
    """File name -> SHA-256, several at once: hashing releases the GIL."""

    def digest(path: Path) -> tuple[str, str]:
        with path.open("rb") as file:
            return path.name, hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor(8) as pool:
        return dict(pool.map(digest, paths))


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sync(folder: Path) -> None:
    """Brings the folder's entries to the disk: the names of new files are not there with their bytes."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _of_first_rank(value: Any, group: Any) -> Any:
    if group is None:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=group)
    return box[0]
