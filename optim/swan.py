"""SWAN (Ma et al. 2024, arXiv:2412.13148): SGD on normalised and whitened gradients. It keeps no state of matrices."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optim.matrix import MatrixOptimizer
from optim.mup import ADAM, Exponents

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SWAN(MatrixOptimizer):
    """GradNorm by rows, then GradWhitening, then Frobenius norm sqrt(rows * columns); rows are the shorter side."""

    tolerance: float = 1e-3
    """whitened singular values are this near to 1, but for those that are rounding (`optim.polar.polar`)"""
    scale: float = 0.2
    """times the update, whose entries have root mean square 1; 0.2 is about AdamW's (arXiv:2502.16982)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_positive("scale", "tolerance")
        if self.tolerance >= 0.1:
            raise ValueError(f"optimizer.tolerance={self.tolerance} is not near convergence: use less than 0.1.")

    @property
    def mup(self) -> Exponents:
        return Exponents(-0.5, ADAM.others)

    def direction(self, gradient: "Tensor", state: dict[str, Any]) -> "Tensor":
        from optim.polar import normalized, polar

        rows, columns = gradient.shape
        if rows > columns:
            return self.direction(gradient.mT, state).mT
        whitened = normalized(polar(grad_norm(gradient), self.tolerance))
        return whitened * (self.scale * (rows * columns) ** 0.5)


def grad_norm(x: "Tensor") -> "Tensor":
    """Each row minus its mean, over its standard deviation (eq. 30); rows that are constant become zero."""
    import torch

    info = torch.finfo(x.dtype)
    x = x / x.abs().amax(dim=1, keepdim=True).clamp(min=info.tiny)  # so that no square underflows
    x = x - x.mean(dim=1, keepdim=True)
    deviation = x.square().mean(dim=1, keepdim=True).sqrt()
    return torch.where(deviation > 8 * info.eps, x / deviation, 0.0)
