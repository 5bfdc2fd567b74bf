"""One optimizer step and one evaluation: the arithmetic that is the same under every strategy.

    loss = sum over valid tokens / valid tokens of the whole global batch

The count is known before the backward pass, so any ragged micro-batch, accumulation or world size gives the same
gradient. Strategies average gradients over ranks, hence `local_sum * world_size / count`.
"""

import math
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

from data.batches import IGNORED, Batch
from train.engine import Engine
from train.measure import Clock
from train.noise_scale import NoiseScale
from train.spikes import SpikeGuard


class StepResult(NamedTuple):
    """What the one host-device sync of a step brings back."""

    loss: float
    """mean cross-entropy over the global batch in nats, at the weights before the update"""
    z_loss: float
    """mean of (log Z)^2, 0.0 where it is not used"""
    grad_norm: float
    """norm of the whole gradient, before clipping; NaN where the update was left out before it was known"""
    skipped: bool
    """the spike guard left the update out"""
    stop: bool
    """some rank was asked to stop"""
    save: bool
    """the first rank wants a checkpoint"""
    profile: bool
    """the first rank wants the next step to be profiled"""
    bad_ranks: list[int]
    """ranks whose own loss is not finite"""

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and (self.skipped or math.isfinite(self.grad_norm))


class Asked(NamedTuple):
    """What a rank has to say to the others; it travels with the losses, without a collective of its own."""

    stop: bool = False
    save: bool = False
    profile: bool = False


NOTHING = Asked()


def optimizer_step(
    engine: Engine,
    micro_batches: list[Batch],
    valid_tokens: int,
    tokens: int,
    lr: float,
    z_loss: float,
    clock: Clock,
    asked: Asked = NOTHING,
    noise: NoiseScale | None = None,
    guard: SpikeGuard | None = None,
) -> StepResult:
    """Forward, backward, clip and update on this rank's micro-batches of a global batch with `valid_tokens` targets.

    A non-finite loss or gradient leaves weights and optimizer as they were: look at `finite`. `tokens` is the clock
    before the step. `noise` takes in the step's gradients, `guard` may leave the update out.
    """
    fabric = engine.fabric
    sums = torch.zeros(5, dtype=torch.float64, device=fabric.device)
    scale = fabric.world_size / valid_tokens
    with clock("forward_backward"), noise.watch(engine.module.parameters(), scale) if noise else nullcontext():
        for i, batch in enumerate(micro_batches, 1):
            inputs, targets, documents, positions = _to_device(fabric, batch)
            with engine.accumulating(last=i == len(micro_batches)):
                objective, loss, z = engine.model(inputs, documents, targets, z_loss, positions)
                engine.backward(objective * scale)
            sums[0] += loss
            sums[1] += z
            if noise:
                noise.micro_batch(int((batch.targets != IGNORED).sum()))
    with clock("optimizer"):
        sums[2] = asked.stop
        if fabric.is_global_zero:  # its clock decides for all
            sums[3], sums[4] = asked.save, asked.profile
        norm = engine.gradient_norm()
        local_loss = sums[0].clone()
        sums = _sum_over_ranks(fabric, torch.cat([sums, noise.take()]) if noise else sums)
        known = [] if norm is None else [norm.double().reshape(1)]
        values = torch.cat([sums, *known]).tolist()  # the one sync
        grad_norm = values.pop() if known else None
        mean_loss = values[0] / valid_tokens
        finite = math.isfinite(mean_loss) and (grad_norm is None or math.isfinite(grad_norm))
        skipped = bool(finite and guard and guard.is_spike(tokens, mean_loss, grad_norm))
        if not finite or skipped:
            engine.skip()
        else:
            found = engine.update(lr)
            grad_norm = found if grad_norm is None else grad_norm
        grad_norm = math.nan if grad_norm is None else grad_norm
        if noise:
            noise.update(values[5], values[6], grad_norm, valid_tokens, tokens + valid_tokens)
    bad_ranks = [] if math.isfinite(mean_loss) else _not_finite(fabric, local_loss)
    stop, save, profile = (value > 0 for value in values[2:5])
    return StepResult(mean_loss, values[1] / valid_tokens, grad_norm, skipped, stop, save, profile, bad_ranks)


@torch.no_grad()
def evaluate(engine: Engine, micro_batches: Iterable[Batch]) -> float:
    """Mean cross-entropy in nats over the valid tokens of all ranks' micro-batches."""
    fabric = engine.fabric
    engine.model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=fabric.device)
    for batch in micro_batches:
        inputs, targets, documents, positions = _to_device(fabric, batch)
        _, loss, _ = engine.model(inputs, documents, targets, 0.0, positions)
        sums[0] += loss
        sums[1] += int((batch.targets != IGNORED).sum())
    engine.model.train()
    total, count = _sum_over_ranks(fabric, sums).tolist()
    return total / count


def _not_finite(fabric: Fabric, local_loss: Tensor) -> list[int]:
    losses = torch.as_tensor(fabric.all_gather(local_loss)).flatten().tolist()
    return [rank for rank, loss in enumerate(losses) if not math.isfinite(loss)]


def _to_device(fabric: Fabric, batch: Batch) -> list[Any]:
    """Tokens, targets, documents, positions; documents stay on the host where they are for several ranks."""

    def moved(x: NDArray[np.int64]) -> Tensor:
        tensor = torch.from_numpy(x)
        # from pinned memory the copy does not hold the host up
        return fabric.to_device(tensor.pin_memory() if fabric.device.type == "cuda" else tensor)

    shared = batch.positions is not None
    return [x if x is None or (shared and x is batch.documents) else moved(x) for x in batch]


def _sum_over_ranks(fabric: Fabric, x: Tensor) -> Tensor:
    total = fabric.all_reduce(x, reduce_op="sum")
    assert isinstance(total, Tensor)
    return total
