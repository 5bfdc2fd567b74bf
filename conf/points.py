"""From overrides to validated points: compose, check every one, name them. No torch.

    expand([["model=tiny", "seed=0"], ["model=tiny", "seed=1"]]) -> [Point, Point]

A point's identity is its configuration without `launch`, `context`, `slurm`, `vars`, `dry_run` and nulls; `run_id` is
its hash.
Nothing starts unless all points are good; a ValueError lists all bad ones. The parents of branches are points too.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.branches import NO_PARENT, begin, check_same, keep_marks, parent_overrides, quoted, without_parent
from conf.checks import check, check_context, check_regression
from conf.schema import Config
from conf.typed import coerce
from data.files import flatten, read_json, read_yaml
from data.records import COMPLETED, read_metrics
from data.tokenizers import vocab_size_of
from optim.averaging import Average
from optim.groups import Group
from optim.plan import Plan, plan_of
from train.memory import CHECKPOINTING
from train.shape import Regression, Shape
from train.strategies import check_optimizer

NOT_IDENTITY = ("launch", "context", "slurm", "vars", "dry_run")
EVERY_TOKENS = (
    "eval.every_tokens",
    "launch.log_every_tokens",
    "launch.checkpoint.every_tokens",
    "launch.checkpoint.keep_every_tokens",
)


@dataclass(frozen=True)
class Point:
    """One run of a sweep: what it is (`config`) and where its record lies (`folder`)."""

    run_id: str
    folder: Path
    config: dict[str, Any]
    plan: Plan
    shape: Shape | Regression

    @property
    def parent(self) -> Path | None:
        """The folder of the run that this one branches off."""
        return self.folder.parent / self.config["parent"]["run_id"] if self.config["parent"] else None

    @property
    def own_tokens(self) -> int:
        """Those that it trains on itself: a branch does not count its parent's."""
        return self.plan.final_tokens - self.plan.start_tokens

    @property
    def flops(self) -> float:
        """What its own training costs."""
        return self.shape.flops_per_token(self.plan.sequence_length) * self.own_tokens

    @property
    def optimizer_groups(self) -> list[Group]:
        """Which parameters take which rule."""
        return instantiate(self.config["optimizer"]).groups(self.shape.parameters(), self.plan, self.shape.growth)


def expand(points: Sequence[Sequence[str]], config_name: str = "config") -> list[Point]:
    """Composes and validates every override list. ValueError names all bad points, and points that are the same run.

    Parents that are not asked for themselves come first. `config_name`: the primary configuration, that of the command
    that was called.
    """
    points = listed(points)
    good: list[Point] = []
    parents: dict[tuple[str, ...], Point] = {}
    bad: list[str] = []
    asked: dict[str, str] = {}
    for overrides in points:
        name = " ".join(overrides) or "(no overrides)"
        try:
            point = _point(list(overrides), config_name, parents)
        except (ValueError, TypeError, HydraException, OmegaConfBaseException) as error:
            bad.append(f"  {name}\n    {innermost(error)}")
            continue
        if point.run_id in asked:
            bad.append(
                f"  {name}\n    is the same run as `{asked[point.run_id]}`: change an override, or give a `label`."
            )
        asked[point.run_id] = name
        good.append(point)
    if bad:
        raise ValueError(f"{len(bad)} of {len(points)} points are not valid; nothing was started.\n" + "\n".join(bad))
    asked_for = {point.folder for point in good}
    good = [point for point in {p.folder: p for p in parents.values()}.values() if point.folder not in asked_for] + good
    keep_marks(good)
    return good


def _point(overrides: list[str], config_name: str, parents: dict[tuple[str, ...], Point]) -> Point:
    """The point of these overrides. Its parent and the parent's own are added to `parents`, by their overrides."""
    config = compose_config(overrides, config_name)
    asked = config["parent"]
    if asked is None:
        return resolve(config, overrides)
    if asked["tokens"] is None:
        raise ValueError(
            "parent.overrides without parent.tokens: say after which of the parent's tokens to branch off."
        )
    own, added = without_parent(overrides), asked["overrides"]
    key = tuple(parent_overrides(own, added))
    if key not in parents:
        if compose_config(own, config_name)["parent"]:  # by an experiment's file, which is the parent's too
            own += NO_PARENT
        parents[key] = _point(parent_overrides(own, added), config_name, parents)
    parent = parents[key]
    point = resolve(config | {"parent": begin(asked, parent)}, overrides)
    check_same(point, parent)
    return point


def listed(points: Sequence[Sequence[str]]) -> list[list[str]]:
    """The points, with each that says points=<file> replaced by those of the file: a YAML list of override lists."""
    found = []
    for overrides in points:
        named = [text.split("=", 1)[1] for text in overrides if re.match(r"\+*points=", text)]
        common = [text for text in overrides if not re.match(r"\+*points=", text)]
        if not named:
            found.append(list(overrides))
            continue
        path = Path(named[-1])
        if not path.is_file():
            raise ValueError(f"points={path}: no such file. It is a YAML list of override lists, one a point.")
        content = read_yaml(path)
        good = isinstance(content, list) and content and all(isinstance(own, list) and own for own in content)
        if not good or not all(isinstance(text, str) for own in content for text in own):
            raise ValueError(f"points={path} must hold a list of lists of overrides, as `- [model=tiny, seed=1]`.")
        found += [[*common, *own] for own in content]
    return found


def compose_config(overrides: Sequence[str], config_name: str = "config") -> dict[str, Any]:
    """The resolved configuration of one point, as plain containers. Needs Hydra to be initialised (`fulcrum` is)."""
    assert GlobalHydra.instance().is_initialized()
    config = compose(config_name, [quoted(text) for text in overrides], return_hydra_config=True)
    experiment = OmegaConf.select(config, "hydra.runtime.choices.experiment")
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    plain = {key: plain[key] for key in (field.name for field in fields(Config))}  # without a command's own options
    if plain["parent"] == {"tokens": None, "overrides": []}:
        plain["parent"] = None
    stop = plain["stop_when"]
    if stop and (stop["loss"] == 0 or (stop["loss"] is None and stop["rivals"] is None)):
        plain["stop_when"] = None
    plain["launch"]["experiment"] = plain["launch"]["experiment"] or experiment or "default"
    return plain  # type: ignore[return-value]


def resolve(config: dict[str, Any], overrides: list[str]) -> Point:
    """Checks one configuration and names its run. ValueError with the key, the value and the fix."""
    config = _typed(config)
    config["launch"]["overrides"] = overrides
    launch = config["launch"]
    check(launch["devices"] >= 1, "launch.devices", launch["devices"], "use at least 1")
    check(
        launch["accelerator"] in ("auto", "cpu", "cuda"), "launch.accelerator", launch["accelerator"], "auto, cpu, cuda"
    )
    check(launch["retry"] in (None, "diverged"), "launch.retry", launch["retry"], "use `diverged` or null")
    check(launch["checkpoint"]["keep"] >= 1, "launch.checkpoint.keep", launch["checkpoint"]["keep"], "use at least 1")
    check(launch["search"]["factor"] > 1, "launch.search.factor", launch["search"]["factor"], "use more than 1")
    minutes = launch["checkpoint"]["every_minutes"]
    check(minutes is None or minutes > 0, "launch.checkpoint.every_minutes", minutes, "use a positive number, or null")
    for key in ("collective_timeout", "tokens_per_second"):
        check(launch[key] is None or launch[key] > 0, f"launch.{key}", launch[key], "use a positive number")
    how = launch["activation_checkpointing"]
    check(how in CHECKPOINTING, "launch.activation_checkpointing", how, f"use {', '.join(CHECKPOINTING)}")
    for key in ("micro_batch_size", "parallel", "threads"):
        check(launch[key] is None or launch[key] >= 1, f"launch.{key}", launch[key], "use at least 1, or null")
    check(config["precision"] in ("float32", "bf16"), "precision", config["precision"], "use float32 or bf16")
    for key in ("clip_norm", "z_loss"):
        check(config[key] >= 0, key, config[key], "use 0 or more")

    vocab_size = vocab_size_of(config["tokenizer"])
    declared = config["model"].get("vocab_size")
    check(
        declared is None or declared >= vocab_size,
        "model.vocab_size",
        declared,
        f"the tokenizer has {vocab_size} ids; leave it null, or use a tokenizer of at most {declared}",
    )
    shape = instantiate(config["model"], vocab_size=declared or vocab_size)
    plan = plan_of(config)
    marks = launch["checkpoint"]["marks"]
    for tokens in marks:
        good = plan.start_tokens < plan.boundary(tokens) and tokens <= plan.final_tokens
        check(
            good, "launch.checkpoint.marks", tokens, f"no step of the run ends there; its last at {plan.final_tokens}"
        )
    launch["checkpoint"]["marks"] = [plan.boundary(tokens) for tokens in marks]
    check(
        launch["logger"] is None or isinstance(launch["logger"], dict),
        "launch.logger",
        launch["logger"],
        "use logger=<name>",
    )
    config["averages"] = config["averages"] or None  # no averages are no part of the identity
    for name, average in (config["averages"] or {}).items():
        key = f"averages.{name}"
        check(bool(re.fullmatch("[A-Za-z0-9_]+", name)), key, average, "use only A-Z, a-z, 0-9 and _ in the name")
        described = isinstance(average, dict) and "_target_" in average
        check(described, key, average, f"give it a _target_ of optim.averaging, or remove it with ~{key}")
        try:
            instantiate(average)
        except HydraException as error:  # the object does not know its own name
            raise ValueError(innermost(error).replace("averages.<name>", key)) from None
    for node in (config["optimizer"], config["spike_guard"], config["slurm"], launch["logger"]):
        _instantiate_all(node)
    strategy, optimizer = instantiate(launch["strategy"]), instantiate(config["optimizer"])
    strategy.check(launch["devices"])
    check_context(config, shape)
    check_optimizer(strategy, optimizer)
    optimizer.groups(shape.parameters(), plan, shape.growth)  # refuses what this model and plan leave no room for
    weights, sources = config["data"]["weights"], config["data"]["sources"]
    check(isinstance(sources, dict) and bool(sources), "data.sources", sources, "give at least one source by name")
    good = isinstance(weights, dict) and all(isinstance(w, int | float) and w > 0 for w in weights.values())
    check(weights is None or good, "data.weights", weights, "give {source: positive number}, or null")
    once = f"name each of {sorted(sources)} once, or choose the data it is for (experiment=mixtures_web: on web text)"
    check(weights is None or set(weights) == set(sources), "data.weights", weights, once)
    check_regression(config, shape, [instantiate(source) for source in sources.values()])
    launch["rivals"] = _rivals(config)
    run_id = "r" + hashlib.sha256(canonical_json(identity(config)).encode()).hexdigest()[:11]
    folder = Path(launch["runs"]).resolve() / launch["experiment"] / run_id
    point = Point(run_id, folder, config, plan, shape)
    _check_folder(point)
    return point


def plan_alone(overrides: Sequence[str], config_name: str) -> tuple[Plan, dict[str, Average]]:
    """The plan of one point and its averages, whatever its model and data are. ValueError for a branch, and for
    sequences of rows."""
    config = _typed(compose_config(overrides, config_name))
    check(
        config["parent"] is None,
        "parent",
        config["parent"],
        "a branch has no plan of its own from the start: leave it out",
    )
    check(config["sequence_length"] == 1, "sequence_length", config["sequence_length"], "a token is a row here: use 1")
    return plan_of(config), {name: instantiate(average) for name, average in (config["averages"] or {}).items()}


def _typed(config: dict[str, Any]) -> dict[str, Any]:
    config = _whole_tokens(coerce(config, ""))
    return config | {"schedule": _with_record(config["schedule"])}


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is: the configuration without how it is run, `vars` (already used), and nulls."""

    def without_nulls(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: without_nulls(v) for k, v in value.items() if v is not None}
        return [without_nulls(v) for v in value] if isinstance(value, list) else value

    return without_nulls({key: value for key, value in config.items() if key not in NOT_IDENTITY})


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and one spelling per number: 1, 1.0 and 1e0 are the same."""

    def canonical(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: canonical(v) for k, v in value.items()}
        if isinstance(value, list):
            return [canonical(v) for v in value]
        return int(value) if isinstance(value, float) and value.is_integer() else value

    return json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _rivals(config: dict[str, Any]) -> str | None:
    """The hash that runs have in common which race for one loss: of the identity without stop_when.rivals."""
    wanted = config["stop_when"]
    if wanted is None:
        return None
    check(wanted["loss"] is not None, "stop_when.rivals", wanted["rivals"], "give the stop_when.loss they race for")
    check(wanted["loss"] > 0, "stop_when.loss", wanted["loss"], "use a positive number of nats, or 0 for none")
    check(wanted["beaten_by"] >= 1, "stop_when.beaten_by", wanted["beaten_by"], "use 1 or more")
    if wanted["rivals"] is None:
        return None
    common = dict(flatten(identity(config)))
    for key in wanted["rivals"]:
        of_key = [name for name in common if name == key or name.startswith(f"{key}.")]
        check(
            bool(of_key),
            "stop_when.rivals",
            key,
            "it is no key of this run: leave it out, as stop_when.rivals=[peak_lr]",
        )
        common = {name: value for name, value in common.items() if name not in of_key}
    return hashlib.sha256(canonical_json(common).encode()).hexdigest()[:11]


# ---------------------------------------------------------------------------------------------------- checks


def _whole_tokens(config: dict[str, Any]) -> dict[str, Any]:
    """Turns numbers of tokens into integers, and cuts the budget to whole sequences (reference ramps overshoot it)."""
    if config["warmup_tokens"] is not None:  # often a share of the budget
        config["warmup_tokens"] = math.floor(config["warmup_tokens"])

    def whole(node: dict[str, Any], key: str, name: str) -> None:
        value = node[key]
        if value is not None:
            check(float(value).is_integer() and value >= 0, name, value, "use a whole number of tokens")
            node[key] = int(value)

    config["total_tokens"] = math.floor(config["total_tokens"])
    for key in ("unique_tokens", "warmup_tokens"):
        whole(config, key, key)
    whole(config["eval"], "tokens", "eval.tokens")
    for key in EVERY_TOKENS:
        value = OmegaConf.select(OmegaConf.create(config), key)
        check(value is None or value > 0, key, value, "use a positive number of tokens, or null")
    growth = config["eval"]["growth"]
    check(growth is None or growth > 1, "eval.growth", growth, "use a factor above 1, as 1.2, or null")
    length = config["sequence_length"]
    check(length >= 1, "sequence_length", length, "use at least 1")
    if config["total_tokens"] >= length and config["ramp"].get("rounding") != "reference":
        config["total_tokens"] -= config["total_tokens"] % length
    return config


def _with_record(schedule: dict[str, Any]) -> dict[str, Any]:
    """`schedule` with the gradient norms of the run it names in `record`: they, not the folder, are what a run is."""
    if "record" not in schedule:
        return schedule
    folder = Path(schedule["record"])
    status = read_json(folder / "summary.json").get("status")
    rows = read_metrics(folder / "metrics.jsonl")
    if status != COMPLETED or not rows:
        raise ValueError(
            f"schedule.record={folder}: {'no run' if status is None else f'a run that is {status}'} lies there. Give "
            "the folder of a completed run, as runs/<experiment>/<run_id>."
        )
    norms = {"tokens": [row["tokens"] for row in rows], "grad_norms": [row["grad_norm"] for row in rows]}
    return {key: value for key, value in schedule.items() if key != "record"} | norms


def _instantiate_all(node: Any) -> None:
    """Builds every object below `node`: their constructors check what can be checked without reading data."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            instantiate(node)
        else:
            for value in node.values():
                _instantiate_all(value)


def _check_folder(point: Point) -> None:
    """A folder with this run's name must hold this run."""
    path = point.folder / "config.yaml"
    if path.exists() and canonical_json(identity(read_yaml(path))) != canonical_json(identity(point.config)):
        raise ValueError(
            f"{point.folder} was written by another configuration than the one that is asked for: "
            "move it away, or set launch.runs or launch.experiment."
        )


def innermost(error: BaseException) -> str:
    """The message a user needs: Hydra wraps the constructor's own error in its own."""
    while error.__cause__ is not None and isinstance(error.__cause__, ValueError | TypeError):
        error = error.__cause__
    return " ".join(str(error).split())
