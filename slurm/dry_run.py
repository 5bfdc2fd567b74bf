"""`fulcrum train dry_run=true`: what each point would train, in what memory and time. No torch.

each point   size, plan, hours, memory of a rank, layouts of context parallelism, which parameters its optimizers take
at the end   memory of a rank under every strategy, for the point that needs the most
"""

import os
import re
import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from conf.points import Point
from data.files import read_json, read_lines
from data.records import read_metrics
from slurm.display import short_labels
from train.context_parallel.cost import Machine, ranked
from train.context_parallel.cost import describe as describe_layouts
from train.context_parallel.placement import Context
from train.memory import STRATEGIES, Memory, number_bytes, optimizer_bytes, per_rank
from train.shape import Shape

MEASURE = "benchmarks/context_parallel.py"
COLUMNS = ("weights", "gathered", "gradients", "optimizer", "averages", "activations", "temporary", "buffers")


def describe(points: Sequence[Point]) -> str:
    """A few lines per point; memory and groups that an earlier point has too are named by that point."""
    labels = short_labels(points)
    first_with: dict[str, str] = {}
    hours: dict[str, float] = {}
    lines = [f"{len(points)} point{'s' * (len(points) != 1)} would be trained; nothing is started, nothing is written."]
    for point in points:
        plan, batches = point.plan, point.plan.segments.batch_size
        growth = f" to {batches[-1]:,} in {len(batches)} segments," if len(batches) > 1 else ""
        size = f"sequences of {plan.sequence_length:,} tokens"
        speed, source = speed_of(point)
        if speed:
            hours[point.run_id] = point.own_tokens / speed / 3600
        details = "\n".join([*describe_memory(point), *describe_context(point), describe_groups(point)])
        same = first_with.setdefault(details, point.run_id)
        lines += [
            "",
            labels[point.run_id],
            f"  {os.path.relpath(point.folder)}",
            f"  N {point.shape.N:,}  N_total {point.shape.N_total:,}  steps {plan.serial_steps:,}  "
            f"tokens {plan.final_tokens:,}  FLOPs {point.flops:.4g}",
            f"  batch {batches[0]:,}{growth} {size}, peak rate {plan.peak_lr:.4g}",
            *([f"  {hours[point.run_id]:.3g} hours at {speed:,.0f} tokens/s, {source}"] if speed else []),
            details if same == point.run_id else f"  memory and optimizer as for {same}",
        ]
    transformers = [point for point in points if isinstance(point.shape, Shape)]
    if transformers:
        largest = max(transformers, key=lambda point: memory(point, strategy_name(point)).device)
        lines += ["", *memory_table(largest, of_several=len(points) > 1)]
    lines.append("")
    if hours:
        lines.append(f"{sum(hours.values()):.3g} hours for {len(hours)} of {len(points)} points, one after another.")
    if len(hours) < len(points):
        lines.append(
            f"Hours are not known for {len(points) - len(hours)} of {len(points)}: give launch.tokens_per_second, or "
            "train a run of the same shape and layout in this experiment."
        )
    return "\n".join(lines)


def describe_groups(point: Point) -> str:
    """Which parameters take which rule, with weight decay and rate; one name stands for all blocks."""
    lines = []
    for group in point.optimizer_groups:
        decay = f"weight decay {group.weight_decay:.4g}"
        if group.weight_decay and group.decay_lr is not None:
            decay += f" at rate {group.decay_lr:.4g} throughout"
        counts = f"{len(group.names)} tensors, {group.parameters:,} parameters"
        names = dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in group.names)
        lines += [f"  {group.optimizer}: {counts}, {decay}, rate x {group.lr_scale:g}", f"    {' '.join(names)}"]
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------- memory


def memory(point: Point, strategy: str) -> Memory:
    """Of one rank of the point's devices under `strategy`."""
    assert isinstance(point.shape, Shape)
    launch, shapes, context = point.config["launch"], point.shape.parameters(), Context.of(point.config["context"])
    # no rank of several makes a mask
    shape = replace(point.shape, document_mask=False) if context.name else point.shape
    momentum = point.config["optimizer"].get("momentum", 0.0)
    return per_rank(
        shape,
        optimizer_bytes(shapes, point.optimizer_groups, momentum),
        strategy,
        launch["devices"],
        micro_batch_size(point),
        min(context.capacity, point.plan.sequence_length * int(point.plan.segments.batch_size.max()))
        if context.capacity
        else point.plan.sequence_length // context.size,
        point.config["precision"],
        launch["activation_checkpointing"],
        averages=len(point.config["averages"] or {}),
        replicas=launch["strategy"].get("replicas", 1) if strategy == "fsdp" else 1,
    )


def micro_batch_size(point: Point) -> int:
    """Sequences per device per forward pass."""
    launch = point.config["launch"]
    if point.config["context"]["capacity"]:
        return 1
    data_ranks = launch["devices"] // sharing(point)
    return launch["micro_batch_size"] or -(-int(point.plan.segments.batch_size[0]) // data_ranks)


def sharing(point: Point) -> int:
    """Ranks over which a sequence lies."""
    return Context.of(point.config["context"]).size


def strategy_name(point: Point) -> str:
    return instantiate(point.config["launch"]["strategy"]).name


def describe_memory(point: Point) -> list[str]:
    """One line: a rank's memory under the point's own strategy, and its largest parts; none for a regression."""
    if not isinstance(point.shape, Shape):
        return []
    strategy = strategy_name(point)
    needed = memory(point, strategy)
    parts = sorted(((getattr(needed, name), name) for name in COLUMNS), reverse=True)
    largest = ", ".join(f"{name} {in_bytes(size)}" for size, name in parts[:4] if size)
    offloaded = "".join(f", on {name} {in_bytes(size)}" for name in ("host", "disk") if (size := getattr(needed, name)))
    return [f"  memory {in_bytes(needed.device)} a rank with {strategy} ({largest}{offloaded})"]


def memory_table(point: Point, of_several: bool) -> list[str]:
    """A rank's memory under every strategy on the point's devices; the point's own is marked."""
    launch, chosen = point.config["launch"], strategy_name(point)
    devices = launch["devices"]
    which = f"{point.run_id}, which needs the most: memory" if of_several else "memory"
    context = Context.of(point.config["context"])
    at_once = f"{micro_batch_size(point)} sequences a micro-batch"
    if context.name:
        at_once = f"{at_once} over heads x ring {context.name}" if context.capacity is None else f"a {context.name}"
    lines = [
        f"{which} of a rank by strategy, {devices} device{'s' * (devices > 1)}, {at_once}, "
        f"{point.config['precision']}, activation checkpointing {launch['activation_checkpointing']}",
        "  " + " " * 20 + "".join(f"{name:>12}" for name in (*COLUMNS, "total", "on host", "on disk")),
    ]
    whole = instantiate(point.config["optimizer"]).needs_whole_matrices
    for strategy in STRATEGIES:
        name = f"{'*' if strategy == chosen else ' '} {strategy:<20}"
        if strategy == "single" and devices > 1:
            lines.append(f"{name} takes one device")
        elif whole and strategy not in ("single", "ddp"):
            optimizer = point.config["optimizer"]["_target_"].rpartition(".")[2]
            lines.append(f"{name} splits matrices, which {optimizer} needs whole")
        else:
            m = memory(point, strategy)
            sizes = [*(getattr(m, column) for column in COLUMNS), m.device, m.host, m.disk]
            lines.append(name + "".join(f"{in_bytes(size):>12}" for size in sizes))
    return lines


def in_bytes(size: float) -> str:
    """Three digits in decimal units; a dash for nothing."""
    if not size:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"


# ---------------------------------------------------------------------------------------------------- context


def describe_context(point: Point) -> list[str]:
    """The fastest layouts of the ranks that share a sequence, and the point's own; none where no ranks do."""
    if sharing(point) == 1:
        return []
    assert isinstance(point.shape, Shape)
    ranks, given = sharing(point), dict(point.config["context"]["machine"])
    devices, nodes = point.config["launch"]["devices"], point.config["slurm"]["nodes"]
    per_node = given.pop("ranks_per_node")
    per_node = min(devices, max(1, devices // nodes) if per_node is None else per_node)
    missing = [f"context.machine.{key}" for key, value in given.items() if value is None]
    if missing:
        return [f"  layouts of context are compared where you give {', '.join(missing)}, as {MEASURE} measures them"]
    machine, rows, width = Machine(per_node, **given), micro_batch_size(point), number_bytes(point.config["precision"])
    costs = ranked(point.shape, ranks, machine, point.plan.sequence_length, rows, width)
    lines = describe_layouts(costs, Context.of(point.config["context"]))
    return [
        f"  attention of a layer on {ranks} ranks, {per_node} a node: ms of a micro-batch of {rows}, both ways",
        *(f"  {line}" for line in lines),
    ]


# ---------------------------------------------------------------------------------------------------- hours


def speed_of(point: Point) -> tuple[float | None, str]:
    """Tokens per second of the point, given or measured, and where it is from; None where it is not known."""
    given = point.config["launch"]["tokens_per_second"]
    if given:
        return given, "as given"
    speeds = measured_speeds(point)
    if not speeds:
        return None, ""
    return statistics.median(
        speeds
    ), f"the median of {len(speeds)} run{'s' * (len(speeds) > 1)} of this shape and layout"


def measured_speeds(point: Point) -> list[float]:
    """Tokens per second of each run in the point's experiment that has its sizes, precision, devices and strategy."""
    launch, plan = point.config["launch"], point.plan
    wanted = {
        "N": point.shape.N,
        "N_total": point.shape.N_total,
        "sequence_length": plan.sequence_length,
        "flops_per_token": point.shape.flops_per_token(plan.sequence_length),
        "precision": point.config["precision"],
    }
    context = Context.of(point.config["context"]).name
    layout = {"world_size": launch["devices"], "strategy": strategy_name(point), "context": context}
    return _speeds(point.folder.parent, tuple(wanted.items()), tuple(layout.items()))


@cache
def _speeds(experiment: Path, wanted: tuple[tuple[str, Any], ...], layout: tuple[tuple[str, Any], ...]) -> list[float]:
    """Read once for all points of a shape: a command does not wait for new records."""
    speeds = []
    for path in sorted(experiment.glob("*/run.json")):
        lives = read_lines(path.parent / "lives.jsonl")
        if lives and agrees(read_json(path), dict(wanted)) and agrees(lives[-1], dict(layout)):
            rows = [row["tokens_per_second"] for row in read_metrics(path.parent / "metrics.jsonl")]
            speeds += [statistics.median(rows)] if rows else []
    return speeds


def agrees(record: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(record.get(key) == value for key, value in wanted.items())
