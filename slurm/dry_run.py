"""`fulcrum train dry_run=true`: what each point would train, and which parameters its optimizers take. No torch."""

import os
import re
from collections.abc import Sequence

from conf.points import Point
from slurm.display import short_labels


def describe(points: Sequence[Point]) -> str:
    """A few lines per point; a grouping that an earlier point has too is named by that point."""
    labels = short_labels(points)
    first_with: dict[str, str] = {}
    lines = [f"{len(points)} point{'s' * (len(points) != 1)} would be trained; nothing is started, nothing is written."]
    for point in points:
        grouping = describe_groups(point)
        same = first_with.setdefault(grouping, point.run_id)
        lines += [
            "",
            labels[point.run_id],
            f"  {os.path.relpath(point.folder)}",
            f"  N {point.shape.N:,}  steps {point.plan.serial_steps:,}  tokens {point.plan.final_tokens:,}  "
            f"FLOPs {point.flops:.4g}",
            grouping if same == point.run_id else f"  optimizer as for {same}",
        ]
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
