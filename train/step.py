"""One optimizer step and one evaluation: the arithmetic that is the same under every strategy.

    loss = sum over valid tokens / valid tokens of the whole global batch

The count is known before the backward pass, so any ragged micro-batch, accumulation or world size gives the same
gradient. Strategies average gradients over ranks, hence `local_sum * world_size / count`.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import Tensor, nn

from data.batches import IGNORED, Batch


class StepResult(NamedTuple):
    """What the one host-device sync of a step brings back."""

    loss: float
    """mean cross-entropy over the global batch in nats, at the weights before the update"""
    z_loss: float
    """mean of (log Z)^2, 0.0 where it is not used"""
    grad_norm: float
    """norm of the whole gradient, before clipping"""
    stop: bool
    """some rank was asked to stop"""
    bad_ranks: list[int]
    """ranks whose own loss is not finite"""

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def loss_sum(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Sum over valid positions of the cross-entropy in nats; a float32 scalar."""
    logits_NV = logits_BTV.flatten(0, 1).float()
    return F.cross_entropy(logits_NV, targets_BT.flatten(), ignore_index=IGNORED, reduction="sum")


def z_sum(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Sum over valid positions of (log Z)^2, Z the softmax's normaliser; a float32 scalar."""
    return (torch.logsumexp(logits_BTV.float(), dim=-1).square() * (targets_BT != IGNORED)).sum()


def optimizer_step(
    fabric: Fabric,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: list[Batch],
    valid_tokens: int,
    lr: float,
    clip_norm: float,
    z_loss: float,
    stop: bool = False,
) -> StepResult:
    """Forward, backward, clip and update on this rank's micro-batches of a global batch with `valid_tokens` targets.

    A non-finite loss or gradient leaves weights and optimizer as they were: look at `finite`. `stop` travels with the
    losses, so that all ranks learn of a signal at the same step without a collective of its own. `lr` is the plan's
    rate; a parameter group may have a multiple of it, `lr_scale`.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=fabric.device)
    for i, batch in enumerate(micro_batches, 1):
        tokens, targets, documents = _to_device(fabric, batch)
        with fabric.no_backward_sync(model, enabled=i < len(micro_batches)):  # type: ignore[arg-type]
            logits = model(tokens, documents)
            loss = loss_sum(logits, targets)
            sums[0] += loss.detach()
            if z_loss:
                z = z_sum(logits, targets)
                sums[1] += z.detach()
                loss = loss + z_loss * z
            fabric.backward(loss * (fabric.world_size / valid_tokens))
    sums[2] = stop
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip_norm if clip_norm else math.inf)
    local_loss = sums[0].clone()
    sums = _sum_over_ranks(fabric, sums)
    loss_total, z_total, stops, grad_norm = torch.cat([sums, norm.double().reshape(1)]).tolist()  # the one sync
    result = StepResult(loss_total / valid_tokens, z_total / valid_tokens, grad_norm, stops > 0, [])
    if not result.finite:
        losses = torch.as_tensor(fabric.all_gather(local_loss)).flatten().tolist()
        result = result._replace(bad_ranks=[rank for rank, loss in enumerate(losses) if not math.isfinite(loss)])
    else:
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return result


@torch.no_grad()
def evaluate(fabric: Fabric, model: nn.Module, micro_batches: Iterable[Batch]) -> float:
    """Mean cross-entropy in nats over the valid tokens of all ranks' micro-batches."""
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=fabric.device)
    for batch in micro_batches:
        tokens, targets, documents = _to_device(fabric, batch)
        sums[0] += loss_sum(model(tokens, documents), targets)
        sums[1] += (targets != IGNORED).sum()
    model.train()
    total, count = _sum_over_ranks(fabric, sums).tolist()
    return total / count


def _to_device(fabric: Fabric, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
    tokens, targets, documents = (None if x is None else fabric.to_device(torch.from_numpy(x)) for x in batch)
    return tokens, targets, documents  # type: ignore[return-value]


def _sum_over_ranks(fabric: Fabric, x: Tensor) -> Tensor:
    total = fabric.all_reduce(x, reduce_op="sum")
    assert isinstance(total, Tensor)
    return total
