"""The training loop of one point. Its only state is the number of tokens seen.

The loop asks the plan for the step that is under way, takes the samples which that step consumes, makes one optimizer
step, and logs, evaluates and checkpoints where the tokens pass a multiple of the interval.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from data.records import COMPLETED, DIVERGED, PREEMPTED, RunWriter
from train import checkpoint
from train.run import Run
from train.step import StepResult, evaluate, optimizer_step

STOP_REASONS = {COMPLETED: "budget", PREEMPTED: "signal", DIVERGED: "non-finite loss or gradient"}


def train(run: Run, life: dict[str, Any], stop_requested: Callable[[], bool]) -> str:
    """Trains from the newest checkpoint, or from the start, to the end of the plan; returns how it ended."""
    plan, length, launch = run.plan, run.plan.sequence_length, run.config["launch"]
    log_every = launch["log_every_tokens"] or plan.total_tokens / 200
    eval_every = run.config["eval"]["every_tokens"] or plan.total_tokens / 5
    save_every = launch["checkpoint"]["every_tokens"] or plan.total_tokens / 8

    tokens, seconds_before = restore(run)
    step = int(np.searchsorted(plan.steps().tokens_before, tokens))
    record = RunWriter(run.folder, tokens, life) if run.fabric.is_global_zero else None
    started = logged_at = time.perf_counter()
    logged_tokens, stop = tokens, False
    diverged: dict[str, Any] = {}

    while tokens < plan.final_tokens and not stop:
        lr, batch_size = plan.at(tokens)
        result = optimizer_step(
            run.fabric,
            run.model,
            run.optimizer,
            run.micro_batches(tokens // length, batch_size),
            valid_tokens=batch_size * length,
            lr=lr,
            clip_norm=run.config["clip_norm"],
            z_loss=run.config["z_loss"],
            stop=stop_requested(),
        )
        if not result.finite:
            diverged = divergence(result, step, tokens, batch_size, run)
            break
        before, tokens, step, stop = tokens, tokens + batch_size * length, step + 1, result.stop
        run.averages.update(step)

        done = tokens == plan.final_tokens
        evaluation = evaluate_held_out(run, step) if done or passes(before, tokens, eval_every) else {}
        if record and (evaluation or passes(before, tokens, log_every)):
            now = time.perf_counter()
            row = {
                "step": step,
                "tokens": tokens,
                "samples": tokens // length,
                "flops": run.shape.flops_per_token(length) * tokens,
                "lr": lr,
                "batch_size": batch_size,
                "loss": result.loss,
                "grad_norm": result.grad_norm,
                "tokens_per_second": (tokens - logged_tokens) / (now - logged_at),
                "mfu": None,
                "seconds": seconds_before + now - started,
                **({"z_loss": result.z_loss} if run.config["z_loss"] else {}),
                **evaluation,
            }
            record.log(row)
            for logger in run.loggers:
                logger.log_metrics({k: v for k, v in row.items() if v is not None}, step)
            logged_tokens, logged_at = tokens, now
        if done or stop or passes(before, tokens, save_every):
            if record:
                record.sync()
            save(run, tokens, seconds_before + time.perf_counter() - started)

    status = DIVERGED if diverged else COMPLETED if tokens == plan.final_tokens else PREEMPTED
    if record:
        record.close(status, STOP_REASONS[status], record.final() | diverged)
    for logger in run.loggers:
        logger.finalize("success")
    return status


def passes(before: int, after: int, interval: float) -> bool:
    """Whether a multiple of `interval` tokens lies in (before, after]."""
    return math.floor(after / interval) > math.floor(before / interval)


def evaluate_held_out(run: Run, step: int) -> dict[str, float]:
    """`eval_loss` (sources weighted as in training), `eval_loss/<source>` where there are several, bits per byte; and
    `eval_loss_<average>` of every average that has begun."""
    loss, by_source = held_out_loss(run)
    averaged = {}
    for name in run.averages.begun(step):
        with run.averages.applied(name):
            averaged[f"eval_loss_{name}"], _ = held_out_loss(run)
    bytes_per_token = by_weight(run, run.prepared.bytes_per_token_by_source)
    sources = {f"eval_loss/{name}": value for name, value in by_source.items()} if len(by_source) > 1 else {}
    return {"eval_loss": loss, "eval_bits_per_byte": loss / math.log(2) / bytes_per_token, **sources, **averaged}


def held_out_loss(run: Run) -> tuple[float, dict[str, float]]:
    """Of the weights that the model has now: over all sources, weighted as in training, and by source."""
    by_source = {name: evaluate(run.fabric, run.model, run.eval_batches(name)) for name in run.eval_data}
    return by_weight(run, by_source), by_source


def by_weight(run: Run, values: Mapping[str, float]) -> float:
    """The mean of a value per held-out source, weighted as in training."""
    weights = run.prepared.weights
    return sum(weights[name] * values[name] for name in run.eval_data) / sum(weights.values())


def restore(run: Run) -> tuple[int, float]:
    """Loads the newest whole checkpoint: (tokens seen, seconds spent), or (0, 0.0) where there is none."""
    state = checkpoint.load_latest(run.folder / "checkpoints")
    if state is None:
        return 0, 0.0
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.averages.load_state_dict(state.get("averages", {}))  # checkpoints of older versions have none
    return state["tokens"], state["seconds"]


def save(run: Run, tokens: int, seconds: float) -> None:
    if run.fabric.is_global_zero:
        state = {
            "tokens": tokens,
            "seconds": seconds,
            "model": run.model.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "averages": run.averages.state_dict(),
        }
        checkpoint.save(run.folder / "checkpoints", tokens, state, run.config["launch"]["checkpoint"]["keep"])
    run.fabric.barrier()


def divergence(result: StepResult, step: int, tokens: int, batch_size: int, run: Run) -> dict[str, Any]:
    """Where it went wrong: the step that was not made, its samples, and the ranks whose loss was not finite."""
    first = tokens // run.plan.sequence_length
    return {
        "steps": step,
        "tokens": tokens,
        "flops": run.shape.flops_per_token(run.plan.sequence_length) * tokens,
        "samples": [first, first + batch_size],
        "ranks": result.bad_ranks,
        "loss": result.loss,
        "grad_norm": result.grad_norm,
    }
