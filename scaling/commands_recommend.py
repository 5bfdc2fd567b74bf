"""`fulcrum recommend`: rate, batch, weight decay and ramp by the user's own laws and by published ones."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from data.files import read_json
from scaling.commands_fit import given
from scaling.wording import DASH, between, short, three

if TYPE_CHECKING:
    from scaling.recommend import Advice

_FILES = ("hyperparameters", "cbs", "cbs_branched")  # numbers of a report, by the section that wrote them
_NAMES = "hyperparameters.json, cbs.json or cbs_branched.json"
_PLACES = ("*.json", "report/*.json", "*/*.json", "report/*/*.json", "*/report/*.json")  # a report has one part or more


def recommend_command(cfg: DictConfig) -> None:
    """Prints what own and published laws advise for `cfg.N` parameters on `cfg.D` tokens."""
    from scaling.recommend import advices, disagreements, ramp

    if cfg.format not in ("table", "json"):
        raise ValueError(f"format={cfg.format}: one of table, json.")
    size, tokens = (_positive(cfg, name, example) for name, example in (("N", "1e9"), ("D", "2e10")))
    batch = None if cfg.batch is None else _positive(cfg, "batch", "65536")
    length = round(_positive(cfg, "sequence_length", "2048"))
    own = _own(cfg)
    found = advices(size, tokens, own.get("hyperparameters"), own.get("cbs"), batch)
    start = ramp(found, length, batch)
    branched = own.get("cbs_branched")
    if cfg.format == "json":
        told = {"N": size, "D": tokens, "sequence_length": length, "advice": [asdict(one) for one in found]}
        ramps = {"ramp": start and start[0], "ramp_from": start and start[1]}
        ramps |= {"own_ramps": branched["ramps"]} if branched else {}
        print(json.dumps(told | {"disagreements": disagreements(found)} | ramps, indent=1))
        return
    _print(found, size, tokens, length)
    for note in dict.fromkeys(f"{one.source}: {note}" for one in found for note in one.notes):
        print(f"Note: {note}")
    for sentence in disagreements(found):
        print(f"Disagreement: {sentence}")
    if branched:
        print("\n".join(_own_ramps(branched)))
    if start:
        print(f"A ramp from {start[1]}: {start[0]}")
    if not own:
        print("No laws of your own: fulcrum train experiment=hyperparameters, fulcrum report, then runs=<its folder>.")


def _print(found: Sequence[Advice], size: float, tokens: float, length: int) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(
        "law", "known from", "batch (tokens)", "sequences", "peak rate", "weight decay", "timescale",
        "critical batch (tokens)", "extrapolates in", title=f"N = {short(size)}, D = {short(tokens)} tokens",
    )  # fmt: skip
    for one in found:
        batch = _with(one.batch, one.batch_interval, short) + (" (given)" if one.batch_given else "")
        rate = _with(one.rate, one.rate_interval, three)
        numbers = [_plain(one.weight_decay), _plain(one.timescale), _with(one.critical, one.critical_interval, short)]
        sequences = DASH if one.batch is None else f"{one.batch / length:.3g}"
        shown.add_row(one.source, one.known_from, batch, sequences, rate, *numbers, one.extrapolates)
    Console(highlight=False, width=190).print(shown)


def _own_ramps(numbers: dict[str, Any]) -> list[str]:
    """The ramps that branches of the user's own run allow, by the rule for the rate."""
    length, reached = numbers["sequence_length"], max(float(row["tokens"]) for row in numbers["critical"])
    where = f"in sequences of {length} tokens and for its own budget, measured to {short(reached)} tokens"
    ramps = [f"The ramp of your own run, {rule} ({where}): {text}" for rule, text in numbers["ramps"].items()]
    return ramps or ["Your branches give no ramp: fulcrum report says what they lack."]


def _with(value: float | None, ends: tuple[float, float] | None, written: Any) -> str:
    if value is None:
        return DASH
    return written(value) + (f" ({between(*ends, written)})" if ends else "")


def _plain(value: float | None) -> str:
    return DASH if value is None else three(value)


def _own(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """The numbers of the reports that `cfg.runs` and `cfg.fit` name, by section; each section once."""
    files: dict[str, Path] = {}
    for file in dict.fromkeys([*_reported(_listed(cfg.runs)), *_given(_listed(cfg.fit))]):
        if file.stem in files:
            raise ValueError(
                f"two files of {file.name}: {files[file.stem]} and {file}. Their laws are not of one sweep: name one "
                "by fit=<file>, or give runs= the folder of one report."
            )
        files[file.stem] = file
    return {name: read_json(file) for name, file in files.items()}


def _reported(folders: Sequence[str]) -> list[Path]:
    """Files of numbers in the report of each folder of runs, or in each folder that a report was written to."""
    found = []
    for folder in folders:
        there = [path for place in _PLACES for path in sorted(Path(folder).glob(place)) if path.stem in _FILES]
        if not there:
            raise ValueError(
                f"runs={folder}: no {_NAMES} in it, in its report, or in the folders of either. Write it first: "
                f"fulcrum report runs={folder}. Of a report that was written elsewhere (out=) give that folder."
            )
        found += [path.resolve() for path in there]
    return found


def _given(files: Sequence[str]) -> list[Path]:
    for file in map(Path, files):
        if not file.is_file():
            raise ValueError(f"fit={file}: no such file. A report of one of these experiments writes it: {_NAMES}.")
        if file.stem not in _FILES:
            raise ValueError(f"fit={file}: one of {_NAMES}, as reports write them.")
    return [Path(file).resolve() for file in files]


def _listed(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(one) for one in value] if OmegaConf.is_list(value) else [str(value)]


def _positive(cfg: DictConfig, name: str, example: str) -> float:
    value = given(cfg, name, example)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"{name}={value} must be a positive number, as {example}.")
    return number
