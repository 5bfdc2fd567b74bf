"""The training loop of one point. Its only state is the number of tokens seen.

The loop asks the plan for the step that is under way, takes the samples which that step consumes, makes one optimizer
step, and logs, evaluates and checkpoints where the tokens pass a multiple of the interval.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from data.records import COMPLETED, DIVERGED, PREEMPTED, RunWriter, checkpoint_folder
from train import checkpoint
from train.evaluation import evaluated
from train.run import Run
from train.step import Asked, StepResult, optimizer_step
from train.stopping import Stopping, evaluations

STOP_REASONS = {COMPLETED: "budget", DIVERGED: "non-finite loss or gradient"}


def train(run: Run, life: dict[str, Any], stop_requested: Callable[[], str | None]) -> str:
    """Trains from the newest checkpoint, or from the start, to the end of the plan; returns how it ended.

    `stop_requested` names the signal that asked to stop, if any did.
    """
    plan, length, launch = run.plan, run.plan.sequence_length, run.config["launch"]
    log_every = launch["log_every_tokens"] or plan.total_tokens / 200
    save_every = launch["checkpoint"]["every_tokens"] or plan.total_tokens / 8
    save_seconds = 60 * (launch["checkpoint"]["every_minutes"] or math.inf)

    tokens, seconds = restore(run)
    step = int(np.searchsorted(plan.steps().tokens_before, tokens))
    record = RunWriter(run.folder, tokens, life) if run.fabric.is_global_zero else None
    telemetry = run.telemetry
    telemetry.start(tokens, seconds)
    due = evaluations(run.config["eval"]["every_tokens"] or plan.total_tokens / 5, run.config["eval"]["growth"])
    next_evaluation = next(at for at in due if at > tokens)
    stopping = Stopping(run.folder, run.config)
    saved_at, stop, profile = time.monotonic(), False, False
    diverged: dict[str, Any] = {}
    early = None
    if tokens < plan.final_tokens:  # killed when it had ended
        early = run.fabric.broadcast(stopping.reason(record.last(tokens)) if record else None)

    while tokens < plan.final_tokens and not stop and not early:
        lr, batch_size = plan.at(tokens)
        before, after = tokens, tokens + batch_size * length
        done, log = after == plan.final_tokens, passes(before, after, log_every)
        with telemetry.clock("data"):
            micro_batches = run.micro_batches(tokens // length, batch_size)
        several = run.data_ranks * len(micro_batches) > 1 and not run.pool  # whose gradients are of no whole samples
        with telemetry.profiled(profile):
            result = optimizer_step(
                run.engine,
                micro_batches,
                valid_tokens=batch_size * length,
                tokens=tokens,
                lr=lr,
                z_loss=run.config["z_loss"],
                clock=telemetry.clock,
                asked=Asked(
                    stop=bool(stop_requested()),
                    save=time.monotonic() - saved_at > save_seconds,
                    profile=telemetry.profile_due(),
                ),
                noise=run.noise if log and several else None,
                guard=run.guard,
            )
        if not result.finite:
            diverged = divergence(result, step, tokens, batch_size, run)
            break
        tokens, step, stop, profile = after, step + 1, result.stop, result.profile
        run.averages.update(step)

        evaluation = {}
        if done or tokens >= next_evaluation:
            next_evaluation = next(at for at in due if at > tokens)
            with telemetry.clock("evaluation"):
                evaluation = evaluated(run, step)
        if evaluation or log:
            row = {
                "step": step,
                "tokens": tokens,
                "samples": tokens // length,
                "flops": run.shape.flops_per_token(length) * tokens,
                "lr": lr,
                "batch_size": batch_size,
                "loss": result.loss,
                "grad_norm": result.grad_norm,
                "noise_scale": run.noise.value,
                **telemetry.row(tokens),
                **({"z_loss": result.z_loss} if run.config["z_loss"] else {}),
                **({"skipped_updates": run.guard.skipped} if run.guard else {}),
                **evaluation,
            }
            if record:
                record.log(row)
            for logger in run.loggers:
                logger.log_metrics({k: v for k, v in row.items() if v is not None}, step)
            if stopping.loss is not None and evaluation:
                reason = run.fabric.broadcast(stopping.reason(row) if record else None)
                early = None if done else reason
        if done or stop or early or result.save or tokens in run.checkpoints.marks or passes(before, after, save_every):
            if record:
                record.sync()  # a checkpoint must not outlive the rows before it
            with telemetry.clock("checkpoint"):
                save(run, tokens)
            saved_at = time.monotonic()

    run.checkpoints.wait()
    status = DIVERGED if diverged else COMPLETED if early or tokens == plan.final_tokens else PREEMPTED
    if record:
        reason = early or STOP_REASONS.get(status) or stop_requested() or "a signal to another rank"
        record.close(status, reason, record.final() | diverged)
    for logger in run.loggers:
        logger.finalize("success" if status == COMPLETED else "failed")
    return status


def passes(before: int, after: int, interval: float) -> bool:
    """Whether a multiple of `interval` tokens lies in (before, after]."""
    return math.floor(after / interval) > math.floor(before / interval)


def restore(run: Run) -> tuple[int, float]:
    """Loads the newest whole checkpoint, or the parent's that a branch starts from: (tokens seen, seconds spent)."""
    folder = run.checkpoints.folder
    path = run.fabric.broadcast(checkpoint.newest(folder) if run.fabric.is_global_zero else None)
    parent = run.config["parent"]
    if path is None and parent:
        path = checkpoint_folder(run.folder.parent / parent["run_id"], parent["tokens"])
        problem = run.fabric.broadcast(checkpoint.damage(path) if run.fabric.is_global_zero else None)
        if problem:
            raise ValueError(
                f"the parent's checkpoint {path} cannot be used ({problem}): restore it, or train another parent with "
                "parent.overrides=[..., label=again]."
            )
        checkpoint.load(path, run.engine, averages=None)
        run.averages.start()
        return parent["tokens"], 0.0
    if path is None:
        return 0, 0.0
    counters = checkpoint.load(path, run.engine, run.averages)
    run.noise.load_state_dict(counters["noise_scale"])
    if run.guard:
        run.guard.load_state_dict(counters["spike_guard"])
    return counters["tokens"], counters["seconds"]


def save(run: Run, tokens: int) -> None:
    counters = {
        "samples": tokens // run.plan.sequence_length,
        "seconds": run.telemetry.seconds,
        "world_size": run.fabric.world_size,
        "strategy": run.strategy,
        "noise_scale": run.noise.state_dict(),
        "spike_guard": run.guard.state_dict() if run.guard else None,
    }
    run.checkpoints.save(tokens, run.engine, run.averages, counters)


def divergence(result: StepResult, step: int, tokens: int, batch_size: int, run: Run) -> dict[str, Any]:
    """Where it went wrong: the step that was not made, its samples, the ranks whose loss was not finite, and theirs."""
    first = tokens // run.plan.sequence_length
    shares = [run.share(first, batch_size, rank) for rank in result.bad_ranks]
    return {
        "steps": step,
        "tokens": tokens,
        "flops": run.shape.flops_per_token(run.plan.sequence_length) * tokens,
        "samples": [first, first + batch_size],
        "ranks": result.bad_ranks or None,  # null: a loss on no rank, but the gradient
        "samples_of_ranks": [[share.start, share.stop] for share in shares],
        "loss": result.loss,
        "grad_norm": result.grad_norm,
    }
