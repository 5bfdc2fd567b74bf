"""Tokens per second of the full trainer over those of a bare torch loop, on the same model, batch and data shape.

    python benchmarks/loop_overhead.py                    the largest quickstart size; goal: at least 0.95
    python benchmarks/loop_overhead.py model=50k          any overrides of `fulcrum train`

Both run in this process, on one thread, in turn (A B A B ...), so that a machine whose speed drifts treats them alike.
The trainer's time includes its data, plan, logging and checkpoints; evaluation is work that the bare loop does not do,
so it is left out (one evaluation at the very end is subtracted by its own measured time).
"""

import contextlib
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from hydra import initialize_config_module

from conf.points import expand
from data.prepare import cache_folder, prepare
from train.evaluation import evaluated
from train.loop import train
from train.model import Transformer, initialize
from train.run import build_run

ROUNDS = 3
STEPS = 195  # one checkpoint interval of the longest quickstart run, so that its cost has its true share


def bare_loop(run, steps: int) -> float:
    """Seconds for `steps` steps of the plainest torch loop on fixed random tokens."""
    model = Transformer(run.shape, run.prepared.vocab_size)
    initialize(model, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    length, batch = run.plan.sequence_length, run.plan.at(0).batch_size
    tokens = torch.randint(0, run.prepared.vocab_size, (batch, length + 1))
    started = time.perf_counter()
    for _ in range(steps):
        logits = model(tokens[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - started


def full_trainer(point) -> float:
    """Seconds of the trainer's loop over the whole plan, without its evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        run = build_run(point.config, Path(folder))
        started = time.perf_counter()
        train(run, {}, lambda: None)
        seconds = time.perf_counter() - started
        started = time.perf_counter()
        evaluated(run, run.plan.serial_steps)
        return seconds - (time.perf_counter() - started)


def main() -> None:
    torch.set_num_threads(1)
    overrides = sys.argv[1:] or ["model=1m"]
    with initialize_config_module("conf", version_base="1.3"):
        plan = expand([["experiment=quickstart", "total_tokens=800e3", *overrides]])[0].plan
        tokens = STEPS * plan.at(0).batch_size * plan.sequence_length
        extra = [f"total_tokens={tokens}", f"eval.every_tokens={tokens}", "eval.tokens=1024"]
        extra += [f"launch.checkpoint.every_tokens={tokens}", f"launch.log_every_tokens={plan.total_tokens / 200}"]
        (point,) = expand([["experiment=quickstart", *overrides, *extra]])
    cache = point.config["launch"]["cache"]
    prepare(point.config["data"], point.config["tokenizer"], cache_folder(cache))
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        run = build_run(point.config, Path(folder))
        bare_loop(run, 10)
        rounds = [(full_trainer(point), bare_loop(run, STEPS)) for _ in range(ROUNDS)]
    ratios = [bare / full for full, bare in rounds]
    print(f"N = {point.shape.N}, {STEPS} steps of {point.plan.at(0).batch_size} x {point.plan.sequence_length} tokens")
    print(f"trainer {tokens / statistics.median(f for f, _ in rounds):.0f} tokens/s", end=", ")
    print(f"bare loop {tokens / statistics.median(b for _, b in rounds):.0f} tokens/s")
    print(f"ratio {statistics.median(ratios):.3f} (median of {ROUNDS}; {min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
