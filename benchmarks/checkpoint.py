"""Seconds that training waits for a checkpoint: written beside training, and written before training goes on.

    python benchmarks/checkpoint.py                          150 million parameters: weights and AdamW's state, 1.8 GB
    python benchmarks/checkpoint.py model=1m strategy=fsdp   any overrides of `fulcrum train`

Both in turn (A B A B ...), in this process, of the same run. `beside` is what `save` takes: a copy to the CPU's memory;
`before` is the same and waiting for bytes, checksums and the rename. A step is timed with nothing being written and
while a checkpoint is: what writing takes from training.
"""

import statistics
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

from hydra import initialize_config_module

from conf.points import expand
from data.prepare import cache_folder, prepare
from train.checkpoint import Checkpoints
from train.measure import Clock
from train.run import Run, build_run
from train.step import optimizer_step

ROUNDS = 3
SMALL_STEP = ["sequence_length=64", "ramp.batch_size=4", "total_tokens=25600", "eval.tokens=64", "data.heldout=0.05"]


def timed_step(run: Run, tokens: int) -> float:
    lr, batch_size = run.plan.at(tokens)
    length = run.plan.sequence_length
    batches = run.micro_batches(tokens // length, batch_size)
    started = time.perf_counter()
    optimizer_step(run.engine, batches, batch_size * length, tokens, lr, 0.0, Clock(run.fabric.device))
    return time.perf_counter() - started


def timed_save(saver: Checkpoints, run: Run, tokens: int) -> float:
    started = time.perf_counter()
    saver.save(tokens, run.engine, run.averages, {"seconds": 0.0})
    return time.perf_counter() - started


def main(overrides: list[str]) -> None:
    with initialize_config_module("conf", version_base="1.3"):
        (point,) = expand([["model=150m", *SMALL_STEP, *overrides]])
    config = point.config
    prepare(config["data"], config["tokenizer"], cache_folder(config["launch"]["cache"]))
    with tempfile.TemporaryDirectory() as folder:
        run = build_run(config, Path(folder))
        saver = Checkpoints(Path(folder) / "checkpoints", 1, None, [], timedelta(minutes=10))
        quiet = [timed_step(run, 256 * i) for i in range(3)][1:]
        beside, before, busy = [], [], []
        for i in range(ROUNDS):
            beside.append(timed_save(saver, run, 2 * i + 1))
            busy.append(timed_step(run, 256 * (3 + i)))
            saver.wait()
            started = time.perf_counter()
            timed_save(saver, run, 2 * i + 2)
            saver.wait()
            before.append(time.perf_counter() - started)
            quiet.append(timed_step(run, 256 * (3 + i)))
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.distcp"))
    one, other, step, slow = (statistics.median(x) for x in (beside, before, quiet, busy))
    print(f"{point.shape.N_total / 1e6:.0f}M parameters, {size / 1e9:.2f} GB a checkpoint, on {run.fabric.device}")
    print(f"stall of a save: beside training {one:.2f} s, before it goes on {other:.2f} s, ratio {one / other:.2f}")
    print(f"a step: {step:.2f} s, while a checkpoint is written {slow:.2f} s, ratio {slow / step:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
