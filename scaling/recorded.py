"""What a run's folder says of how it was trained: its configuration, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.files import read_yaml
from optim.plan import Plan, plan_of

_NOT_THE_RISK = {
    "launch",
    "context",
    "slurm",
    "dry_run",
    "points",
    "label",
    "vars",
    "eval",
    "averages",
    "seed",
    "model",
}


def config_in(folder: str | Path) -> dict[str, Any]:
    return read_yaml(Path(folder) / "config.yaml")


def plan_in(folder: str | Path) -> Plan:
    return plan_of(config_in(folder))


def problem_and_plan(config: Mapping[str, Any], *without: str) -> str:
    """What the exact risk of a regression's weights follows from, as text: its configuration without the keys
    `without`, and without what does not matter for that."""
    return repr(sorted((name, value) for name, value in config.items() if name not in _NOT_THE_RISK | {*without}))


def first_batch_in(config: Mapping[str, Any]) -> int:
    """Sequences of the first step."""
    return int(plan_of(config).segments.batch_size[0])
