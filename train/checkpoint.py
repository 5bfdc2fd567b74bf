"""Checkpoints of one run: weights, optimizer and counters, committed by a manifest with checksums.

    checkpoints/
        000001048576/           tokens seen
            state.pt
            manifest.json       written last: a folder without it does not count

Nothing about schedules, data order or random numbers is stored: they follow from the tokens seen.
"""

import hashlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from data.records import read_json, write_json


def save(folder: Path, tokens: int, state: dict[str, Any], keep: int) -> None:
    """Writes `state` under `folder`, then removes all but the `keep` newest checkpoints."""
    final = folder / f"{tokens:012d}"
    temporary = folder / f".{final.name}.tmp"
    for cut_off in folder.glob(".*.tmp"):  # by a kill in mid-write
        shutil.rmtree(cut_off)
    temporary.mkdir(parents=True)
    path = temporary / "state.pt"
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    write_json(temporary / "manifest.json", {"tokens": tokens, "files": {"state.pt": _checksum(path)}})
    shutil.rmtree(final, ignore_errors=True)  # what another life left here at the same tokens
    os.replace(temporary, final)
    for old in _folders(folder)[keep:]:
        shutil.rmtree(old)


def load_latest(folder: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint's state, on the CPU; None without one. A damaged one is named and passed over."""
    for candidate in _folders(folder):
        problem = _damage(candidate)
        if problem is None:
            return torch.load(candidate / "state.pt", map_location="cpu", weights_only=True)
        print(f"warning: checkpoint {candidate} is damaged ({problem}); the one before it is used.", file=sys.stderr)
    return None


def _folders(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted((p for p in folder.glob("[0-9]*") if p.is_dir()), reverse=True)


def _damage(candidate: Path) -> str | None:
    try:
        manifest = read_json(candidate / "manifest.json")
    except ValueError:
        return "its manifest is not valid JSON"
    if not manifest:
        return "no manifest"
    for name, checksum in manifest["files"].items():
        path = candidate / name
        if not path.exists():
            return f"{name} is missing"
        if _checksum(path) != checksum:
            return f"checksum of {name} differs"
    return None


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
