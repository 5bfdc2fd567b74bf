"""What a run's folder says of how it was trained: its configuration, and the plan that follows from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.files import read_yaml
from optim.plan import Plan, plan_of


def config_in(folder: str | Path) -> dict[str, Any]:
    return read_yaml(Path(folder) / "config.yaml")


def plan_in(folder: str | Path) -> Plan:
    return plan_of(config_in(folder))
