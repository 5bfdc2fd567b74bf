"""Cross-entropy of a linear head without its logits: the head's product, softmax and gradients, chunk by chunk.

    a chunk of hidden rows -> logits -> loss, (log Z)^2, the logits' gradient in place -> gradients of rows and weight

The vocabulary's logits are the largest tensor of a small model by far. Here one chunk of their rows exists at a time:
the forward pass makes the gradients at once, so the backward pass neither keeps nor recomputes logits, nor needs the
weight (Wijmans et al. 2024, Cut Your Losses, say how large logits are; Liger's fused loss goes the same way).

Shape suffixes: N positions, D width, V padded vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from data.batches import IGNORED

CHUNK_ELEMENTS = 2**26
"""logits alive at a time: 256 MiB in float32, and rows enough to keep a matrix product busy"""

Terms = Callable[[Tensor, Tensor, int, float, bool], tuple[Tensor, Tensor, Tensor]]


def softmax_terms(
    logits_NV: Tensor, targets_N: Tensor, vocab_size: int, z_loss: float, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over valid rows of cross-entropy and of (log Z)^2, float32; and d(loss + z_loss * z) / d logits [N, V].

    Softmax and sums are float32, the gradient has the logits' dtype. Overwrites float32 logits. Without gradient the
    third is no gradient; where `z_loss` is 0 the second is 0.
    """
    dtype, valid_N, target_N1 = logits_NV.dtype, targets_N != IGNORED, targets_N.clamp(min=0)[:, None]
    logits_NV = logits_NV.float()
    logits_NV[:, vocab_size:] = -torch.inf
    target_logit_N = logits_NV.gather(1, target_N1)[:, 0]
    max_N = logits_NV.amax(-1)
    exp_NV = logits_NV.sub_(max_N[:, None]).exp_()
    sum_N = exp_NV.sum(-1)
    log_z_N = max_N + sum_N.log()
    loss = torch.where(valid_N, log_z_N - target_logit_N, 0).sum()
    z = torch.where(valid_N, log_z_N.square(), 0).sum() if z_loss else torch.zeros_like(loss)
    if with_gradient:
        z_slope_N = 2 * z_loss * log_z_N
        target_p_N = exp_NV.gather(1, target_N1)[:, 0] / sum_N
        at_target_N = (target_p_N - 1 + z_slope_N * target_p_N) * valid_N
        exp_NV.mul_(((1 + z_slope_N) * valid_N / sum_N)[:, None]).scatter_(1, target_N1, at_target_N[:, None])
    return loss, z, exp_NV.to(dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        vocab_size: int,
        z_loss: float,
        rows: int,
        with_gradient: bool,
        terms: Terms,
    ) -> tuple[Tensor, Tensor, Tensor]:
        compute_VD = weight_VD.to(x_ND.dtype)
        sums = x_ND.new_zeros(2, dtype=torch.float32)
        grad_x_ND = torch.empty_like(x_ND) if with_gradient else None
        grad_weight_VD = None
        for start in range(0, len(x_ND), rows):
            chunk_ND = x_ND[start : start + rows]
            loss, z, grad_NV = terms(
                chunk_ND @ compute_VD.T, targets_N[start : start + rows], vocab_size, z_loss, with_gradient
            )
            sums += torch.stack([loss, z])
            if grad_x_ND is not None:
                torch.mm(grad_NV, compute_VD, out=grad_x_ND[start : start + rows])
                product_VD = (grad_NV.T @ chunk_ND).float()
                grad_weight_VD = product_VD if grad_weight_VD is None else grad_weight_VD.add_(product_VD)
            del grad_NV  # before the next chunk's logits are made
        ctx.save_for_backward(grad_x_ND, grad_weight_VD)
        ctx.weight_dtype = weight_VD.dtype
        loss, z = sums.unbind()
        objective, loss, z = loss + z_loss * z, loss.clone(), z.clone()
        ctx.mark_non_differentiable(loss, z)
        return objective, loss, z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_objective: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad_x_ND, grad_weight_VD = ctx.saved_tensors
        grad_weight_VD = (grad_weight_VD * grad_objective).to(ctx.weight_dtype)
        return grad_x_ND * grad_objective, grad_weight_VD, None, None, None, None, None, None


def linear_cross_entropy(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    vocab_size: int,
    z_loss: float = 0.0,
    chunk_elements: int = CHUNK_ELEMENTS,
    terms: Terms = softmax_terms,
) -> tuple[Tensor, Tensor, Tensor]:
    """(objective, loss, z): float32 sums over the positions whose target is not `IGNORED`, in nats.

    loss is the cross-entropy of the logits x @ weight.T, z is (log Z)^2, Z the softmax's normaliser (0 where `z_loss`
    is 0); objective = loss + z_loss * z, and the only one to be differentiated. Products have the dtype of `x_ND`, the
    weight's gradient is summed in float32. Ids from `vocab_size` on have probability 0 and their rows no gradient. At
    most `chunk_elements` logits exist at a time (one row at least). `terms` is `softmax_terms` or its compiled form.
    """
    chunks = -(-len(x_ND) // max(1, chunk_elements // len(weight_VD)))
    rows = -(-len(x_ND) // chunks)  # equal chunks but for the last, so that a compiled form sees few shapes
    with_gradient = torch.is_grad_enabled() and (x_ND.requires_grad or weight_VD.requires_grad)
    return _LinearCrossEntropy.apply(x_ND, weight_VD, targets_N, vocab_size, z_loss, rows, with_gradient, terms)
