"""When a run ends before its budget: at a target loss, or when it can no longer be there first.

Runs that differ only in the keys of `stop_when.rivals` share a folder beside the runs of their experiment. Who reaches
the target notes its tokens there; who has spent `beaten_by` times as many without reaching it is hopeless.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data.descents import is_held_out
from data.files import read_json, write_json

TARGET, HOPELESS = "target", "hopeless"


def evaluations(first: float, growth: float | None) -> Iterator[float]:
    """Tokens after which a run is evaluated: multiples of `first`, or `first` times the powers of `growth`."""
    for count in itertools.count():
        yield first * (count + 1) if growth is None else first * growth**count


class Stopping:
    """Judges one run at its evaluations; only the first rank asks, and tells the others."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        wanted, rivals = config["stop_when"] or {}, config["launch"]["rivals"]
        self.folder = folder
        self.loss: float | None = wanted.get("loss")
        self.beaten_by: float = wanted.get("beaten_by") or math.inf
        self.mine = folder.parent / ".rivals" / rivals / f"{folder.name}.json" if rivals else None

    def reason(self, row: Mapping[str, Any]) -> str | None:
        """Why the run ends with this row of its record: "target", "hopeless", or not at all (None)."""
        losses = [value for key, value in row.items() if is_held_out(key)]
        if self.loss is None or not losses:
            return None
        if min(losses) <= self.loss:
            if self.mine:
                self.mine.parent.mkdir(parents=True, exist_ok=True)
                write_json(self.mine, {"tokens": row["tokens"]})
            return TARGET
        others = [path for path in self.mine.parent.glob("*.json") if path != self.mine] if self.mine else []
        there = [path for path in others if (self.folder.parent / path.stem).is_dir()]  # one that is gone beats nobody
        best = min((read_json(path)["tokens"] for path in there), default=math.inf)
        return HOPELESS if row["tokens"] >= self.beaten_by * best else None
