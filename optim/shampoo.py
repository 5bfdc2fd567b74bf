"""Shampoo (Gupta et al. 2018, arXiv:1802.09568): L += GG', R += G'G, update L^(-1/4) G R^(-1/4)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optim.matrix import MatrixOptimizer, adjusted, adjustment
from optim.mup import Exponents

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Shampoo(MatrixOptimizer):
    """One step without momentum and eps is the polar factor of the gradient."""

    beta: float | None = 0.95
    """decay of the averages of GG' and G'G, per step, corrected for their start at zero; null: sums, as in the paper"""
    momentum: float = 0.9
    """decay of the average of gradients that is preconditioned, per step, corrected for its start at zero"""
    eps: float = 1e-6
    """added to the eigenvalues of L and R, relative to the largest"""
    refresh_every: int = 10
    """steps between new inverse roots; the first so many steps compute them each time"""
    adjust_lr: str = "match_rms_adamw"
    """original, match_rms_adamw (one rate serves AdamW too) or none"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_share("momentum", *([] if self.beta is None else ["beta"]))
        self.check_not_negative("eps")
        self.check_positive("refresh_every")
        self.check_adjustment(self.adjust_lr)

    @property
    def mup(self) -> Exponents:
        return adjusted(self.adjust_lr)

    def direction(self, gradient: "Tensor", state: dict[str, Any]) -> "Tensor":
        from optim.polar import inverse_root

        rows, columns = gradient.shape
        if not state:
            state["step"] = 0
            state["average"] = gradient.new_zeros(gradient.shape)
            state["left"], state["right"] = gradient.new_zeros(rows, rows), gradient.new_zeros(columns, columns)
        state["step"] += 1
        step, left, right = state["step"], state["left"], state["right"]
        decay, weight, total = (1.0, 1.0, 1.0) if self.beta is None else (self.beta, 1 - self.beta, 1 - self.beta**step)
        left.mul_(decay).addmm_(gradient, gradient.mT, alpha=weight)
        right.mul_(decay).addmm_(gradient.mT, gradient, alpha=weight)
        if step <= self.refresh_every or step % self.refresh_every == 0:
            state["left_root"] = inverse_root(left / total, 4, self.eps)
            state["right_root"] = inverse_root(right / total, 4, self.eps)
        average = state["average"].lerp_(gradient, 1 - self.momentum) / (1 - self.momentum**step)
        return state["left_root"] @ average @ state["right_root"] * adjustment(self.adjust_lr, rows, columns)
