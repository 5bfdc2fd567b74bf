"""What a point asks of Slurm: one option of the group `slurm` per cluster, and rules by point. No torch.

    slurm=a100 --asked(point)--> Slurm with the point's own fields --options()--> sbatch's options

`Local` is this machine, `slurm=local`.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from conf.points import Point
from conf.typed import coerce
from slurm.dry_run import speed_of

# what the submission itself says; a word of slurm.sbatch that says it again would break what we promise
RESERVED = (
    "array", "chdir", "clusters", "comment", "cpus-per-task", "dependency", "error", "kill-on-invalid-dep", "ntasks",
    "ntasks-per-node", "no-requeue", "open-mode", "output", "parsable", "requeue", "signal", "test-only", "wait",
    "wrap",
)  # fmt: skip
START_MINUTES = 10  # added to a time limit that follows from a plan: starting, evaluating, the last checkpoint
QUANTITIES = ("N", "N_total", "tokens", "flops", "hours", "devices")
COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


@dataclass(frozen=True)
class Slurm:
    """What the job of a point asks for. A point has launch.devices processes, spread evenly over its nodes."""

    partition: str | None = None
    """null: the cluster's default"""
    account: str | None = None
    qos: str | None = None
    nodes: int = 1
    """nodes of a point; launch.devices is spread over them"""
    gres: str | None = None
    """GPUs as this cluster names them, without a number: `gpu` or `gpu:a100`, one per process; null: none"""
    cpus_per_task: int | None = None
    """CPU cores of a process; null: launch.threads, or 1"""
    mem: str | int | None = None
    """memory of a node, as 64G; null: the cluster's default"""
    time: str | int | None = None
    """time limit as '12:00:00' or '2-00:00:00'; null: the partition's own"""
    time_per_hour: float | None = None
    """the limit is this times the hours that the plan expects, and 10 minutes, but never above `time`; where the hours
    are not known (launch.tokens_per_second, or records of the same shape), it is `time`"""
    grace: int = 120
    """seconds before the time limit at which a point is asked to checkpoint; then it is requeued"""
    parallel: int | None = None
    """tasks of an array that run at once; null: as many as Slurm lets"""
    array_size: int | None = None
    """tasks of an array at most, where the cluster limits how many jobs may be submitted; null: its MaxArraySize"""
    max_restarts: int = 50
    """how often a point is requeued, by us or by Slurm, before it is left for `fulcrum slurm resubmit`"""
    prefix: list[str] = field(default_factory=list)
    """words before the interpreter: [apptainer, exec, --nv, image.sif]"""
    python: str | None = None
    """interpreter on the compute nodes; null: the one that submits"""
    setup: str = ""
    """lines of shell before a job starts: module load cuda"""
    sbatch: list[str] = field(default_factory=list)
    """further options of sbatch: [--constraint=a100, --exclusive]"""
    prepare: dict[str, Any] = field(default_factory=dict)
    """fields that differ for the job that prepares data: {cpus_per_task: 16, gres: null}"""
    rules: list[dict[str, Any]] = field(default_factory=list)
    """fields that differ for some points, later rules win: [{when: N >= 3e8 and hours > 12, nodes: 2}]"""

    def __post_init__(self) -> None:
        for key in ("nodes", "cpus_per_task", "parallel", "array_size"):
            value = getattr(self, key)
            _check(value is None or value >= 1, key, value, "use at least 1")
        for key in ("grace", "max_restarts"):
            _check(getattr(self, key) >= 0, key, getattr(self, key), "use 0 or more")
        factor = self.time_per_hour
        _check(factor is None or factor > 0, "time_per_hour", factor, "use a positive number, or null")
        fix = "write '12:00:00' or '2-00:00:00', in quotes (YAML reads 12:00:00 as the number 43200)"
        minutes = _minutes(self.time) if isinstance(self.time, str) else math.inf if self.time is None else None
        _check(minutes is not None, "time", self.time, fix)
        long_enough = 60 * (minutes or 0) > self.grace
        _check(long_enough, "time", self.time, f"it must be more than slurm.grace={self.grace} seconds")
        for key in ("prefix", "sbatch"):
            words = getattr(self, key)
            good = _is_list(words) and all(isinstance(word, str) and "\n" not in word for word in words)
            _check(good, key, words, "use a list of words")
        for word in self.sbatch:
            name = word.split("=")[0].lstrip("-")
            _check(word.startswith("--") and name not in RESERVED, "sbatch", word, "give --name=value, and nothing "
                   f"that Fulcrum says itself ({', '.join(RESERVED)})")  # fmt: skip
        known = {f.name for f in dataclasses.fields(self)} - {"rules", "prepare"}
        for name, changes in [("prepare", self.prepare), *((f"rules[{i}]", rule) for i, rule in enumerate(self.rules))]:
            _check(isinstance(changes, Mapping), name, changes, "use a mapping of fields")
            for key in sorted(set(changes) - known - ({"when"} if name != "prepare" else set())):
                _check(False, f"{name}.{key}", changes[key], f"a field is one of {', '.join(sorted(known))}")
            if name != "prepare":
                _conditions(str(changes.get("when", "")))
            fields = {key: value for key, value in changes.items() if key != "when"}
            coerce({"_target_": "slurm.resources.Slurm", **fields}, f"slurm.{name}")
            if fields:
                dataclasses.replace(self, rules=[], prepare={}, **fields)


@dataclass(frozen=True)
class Local(Slurm):
    """This machine: the points train in the background, as `fulcrum train` trains them; the fields say nothing here."""


def asked(point: Point) -> Slurm:
    """What the point's job asks for: its `slurm`, the rules that hold for it, and a time limit from its plan.

    ValueError where its processes do not fit the nodes.
    """
    fields = {key: value for key, value in point.config["slurm"].items() if key not in ("_target_", "rules")}
    devices = point.config["launch"]["devices"]
    rules = [(_conditions(rule["when"]), rule) for rule in point.config["slurm"].get("rules", [])]
    need_hours = any(name == "hours" for conditions, _ in rules for name, _, _ in conditions)
    timed = any(node.get("time_per_hour") for node in (fields, *(rule for _, rule in rules)))
    hours = hours_of(point) if need_hours or timed else None  # it reads the records of the experiment
    quantities = {"N": point.shape.N, "N_total": point.shape.N_total, "devices": devices, "hours": hours}
    quantities |= {"tokens": point.own_tokens, "flops": point.flops}
    for conditions, rule in rules:
        if any(quantities[name] is None for name, _, _ in conditions):
            raise ValueError(
                f"slurm.rules: `when: {rule['when']}`: the hours of this point are not known. Give "
                "launch.tokens_per_second, or train a run of the same shape and layout in this experiment."
            )
        if all(COMPARE[how](quantities[name], limit) for name, how, limit in conditions):
            fields |= {key: value for key, value in rule.items() if key != "when"}
    slurm = Slurm(**fields)
    even = devices % slurm.nodes == 0
    _check(even, "nodes", slurm.nodes, f"launch.devices={devices} does not spread evenly over so many")
    if slurm.time_per_hour and hours is not None:
        minutes = math.ceil(60 * slurm.time_per_hour * hours) + START_MINUTES
        limit = _minutes(str(slurm.time)) if slurm.time else None
        if limit is None or minutes < limit:
            slurm = dataclasses.replace(slurm, time=str(minutes))
    cpus = slurm.cpus_per_task or point.config["launch"]["threads"] or 1
    return dataclasses.replace(slurm, cpus_per_task=cpus)


def hours_of(point: Point) -> float | None:
    """Hours that the plan expects; None where the speed is not known."""
    speed, _ = speed_of(point)
    return point.own_tokens / speed / 3600 if speed else None


def options(slurm: Slurm, devices: int) -> list[str]:
    """sbatch's options for `devices` processes, one per GPU where there are GPUs."""
    per_node = devices // slurm.nodes
    named = {
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "nodes": slurm.nodes,
        "ntasks": devices,
        "ntasks-per-node": per_node,
        "gres": f"{slurm.gres}:{per_node}" if slurm.gres else None,
        "cpus-per-task": slurm.cpus_per_task,
        "mem": slurm.mem,
        "time": slurm.time,
        "signal": f"USR1@{slurm.grace}",
    }
    return [f"--{name}={value}" for name, value in named.items() if value is not None] + slurm.sbatch


def for_data(slurm: Slurm) -> Slurm:
    """What the job that prepares data asks for: one process, no GPU, no further options, but for slurm.prepare."""
    fields = {"nodes": 1, "gres": None, "sbatch": [], **slurm.prepare, "prepare": {}}
    return dataclasses.replace(slurm, **fields)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _conditions(text: str) -> list[tuple[str, str, float]]:
    """`N >= 3e8 and hours > 12` as [("N", ">=", 3e8), ("hours", ">", 12.0)]."""
    found = []
    for part in text.split(" and "):
        match = re.fullmatch(r"\s*(\w+)\s*(>=|<=|>|<)\s*([-+.\deE]+)\s*", part)
        try:
            assert match and match[1] in QUANTITIES
            found.append((match[1], match[2], float(match[3])))
        except (AssertionError, ValueError):
            raise ValueError(
                f"slurm.rules: `when: {text}`: compare {', '.join(QUANTITIES)} with numbers by >=, >, <=, <, joined by "
                "`and`, as N >= 3e8 and hours > 12."
            ) from None
    return found


def _minutes(text: str) -> float | None:
    """A time limit as Slurm writes it, in minutes; None where it is none."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not match:
        return None
    days, *rest = match.groups()
    numbers = [int(number) for number in rest if number is not None]
    if days is not None:  # days-hours[:minutes[:seconds]]
        hours, minutes, seconds = [*numbers, 0, 0][:3]
        return 1440 * int(days) + 60 * hours + minutes + seconds / 60
    if len(numbers) == 3:
        return 60 * numbers[0] + numbers[1] + numbers[2] / 60
    return numbers[0] + (numbers[1] / 60 if len(numbers) == 2 else 0)


def _check(good: bool, key: str, value: Any, fix: str) -> None:
    if not good:
        raise ValueError(f"slurm.{key}={value}: {fix}.")
