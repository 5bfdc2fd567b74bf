"""Which layout of context parallelism is fastest on paper: the table of docs/context_parallel.md.

    python benchmarks/context_layouts.py          two seconds, no GPU

Nothing is measured here: seconds are those of `train.context_parallel.cost` for an assumed machine of round numbers.
Measure your own and change it here, or give it to a dry run as `context.machine`.
"""

from __future__ import annotations

import dataclasses

from train.context_parallel.cost import Cost, Machine, ranked
from train.shape import Shape

MACHINE = Machine(ranks_per_node=8, node_bandwidth=200e9, network_bandwidth=25e9, latency=10e-6, flops=400e12)
SHAPES = {
    "32 heads": Shape(d_model=4096, n_layers=32, n_heads=32, d_ff=11008),
    "64 heads, 8 of keys": Shape(d_model=8192, n_layers=80, n_heads=64, n_kv_heads=8, d_ff=28672),
}
GPUS, LENGTHS = (64, 512, 4096), (2**17, 2**19, 2**20)
STEP, HELD = 2**22, 2**14  # tokens of a step, at least one sequence a group; most tokens that a GPU holds

HEADER = """\
| model | GPUs | sequence | group | fastest layout | ms a layer | compute | one ring | rings of windows | most heads |
|---|--:|--:|--:|---|--:|--:|--:|--:|--:|"""


def main() -> None:
    print("\n".join([table(), "", sensitivity()]))


def table() -> str:
    """Markdown: a row for each model, number of GPUs and sequence."""
    return "\n".join([HEADER, *(row(*setting) for setting in settings())])


def settings() -> list[tuple[str, int, int]]:
    return [(model, gpus, length) for model in SHAPES for gpus in GPUS for length in LENGTHS]


def group(gpus: int, length: int) -> int:
    """Ranks of a sequence: few enough sequences for a step of STEP tokens, few enough tokens of each on a GPU."""
    return max(gpus * length // STEP, length // HELD)


def costs(model: str, gpus: int, length: int, machine: Machine = MACHINE) -> list[Cost]:
    return ranked(SHAPES[model], group(gpus, length), machine, length)


def row(model: str, gpus: int, length: int) -> str:
    found = costs(model, gpus, length)
    rings = [one for one in found if one.context.head_parallel == 1]
    most = max(one.context.head_parallel for one in found)
    shown = [
        found[0].both.total,
        found[0].both.compute,
        next(one.both.total for one in rings if one.context.window is None),
        rings[0].both.total,
        next(one.both.total for one in found if one.context.head_parallel == most),
    ]
    cells = [model, f"{gpus}", f"{length // 1024}k", f"{group(gpus, length)}", found[0].context.name]
    return "| " + " | ".join([*cells, *(f"{1e3 * seconds:.1f}" for seconds in shown)]) + " |"


def sensitivity() -> str:
    """What keeping the layouts of the table would cost on a network of half the bandwidth."""
    slow = dataclasses.replace(MACHINE, network_bandwidth=MACHINE.network_bandwidth / 2)
    changed, dearest = 0, 1.0
    for setting in settings():
        kept, best = costs(*setting)[0].context, costs(*setting, slow)
        here = next(one for one in best if one.context == kept)
        changed += here.both.total > best[0].both.total
        dearest = max(dearest, here.both.total / best[0].both.total)
    return (
        f"On a network of half the bandwidth {changed} of {len(settings())} rows have another fastest layout; keeping "
        f"the one of the table costs at most {100 * (dearest - 1):.0f} % there."
    )


if __name__ == "__main__":
    main()
