"""Muon (Jordan et al. 2024): momentum, its singular values brought near 1 by five quintic Newton-Schulz iterations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optim.matrix import MatrixOptimizer, adjusted, adjustment
from optim.mup import Exponents

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Muon(MatrixOptimizer):
    """torch.optim.Muon's rule and names; the iterations run in the gradient's precision, torch's in bfloat16."""

    momentum: float = 0.95
    """decay of the average of gradients, per step"""
    nesterov: bool = True
    """blend the average with the gradient once more"""
    iterations: int = 5
    """Newton-Schulz iterations"""
    coefficients: Sequence[float] = (3.4445, -4.7750, 2.0315)
    """a, b, c of (a + b XX' + c (XX')^2) X; these bring singular values to about [0.7, 1.2], not to 1"""
    adjust_lr: str = "match_rms_adamw"
    """original, match_rms_adamw (one rate serves AdamW too) or none"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_share("momentum")
        self.check_positive("iterations")
        self.check_adjustment(self.adjust_lr)
        if len(self.coefficients) != 3:
            raise ValueError(f"optimizer.coefficients={list(self.coefficients)}: give three numbers, a, b and c.")

    @property
    def mup(self) -> Exponents:
        return adjusted(self.adjust_lr)

    def direction(self, gradient: "Tensor", state: dict[str, Any]) -> "Tensor":
        from optim.polar import quintic

        if not state:
            state["average"] = gradient.new_zeros(gradient.shape)
        average = state["average"].lerp_(gradient, 1 - self.momentum)
        update = gradient.lerp(average, self.momentum) if self.nesterov else average
        a, b, c = self.coefficients
        return quintic(update, (a, b, c), self.iterations) * adjustment(self.adjust_lr, *gradient.shape)
