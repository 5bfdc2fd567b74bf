"""SOAP (Vyas et al. 2024, arXiv:2409.11321): Adam in the eigenbases of Shampoo's L and R."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optim.matrix import MatrixOptimizer

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SOAP(MatrixOptimizer):
    """The first moment is kept in the weights' own coordinates, the second in the eigenbases' (the paper's choice)."""

    beta1: float = 0.95
    """decay of the first moment, per step"""
    beta2: float = 0.95
    """decay of the second moment, per step"""
    eps: float = 1e-8
    """added to the root of the second moment"""
    shampoo_beta: float = 0.95
    """decay of the averages of GG' and G'G, per step"""
    refresh_every: int = 10
    """steps between turns of the bases, by one power iteration; the first so many steps turn them each time"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_share("beta1", "beta2", "shampoo_beta")
        self.check_not_negative("eps")
        self.check_positive("refresh_every")

    def direction(self, gradient: "Tensor", state: dict[str, Any]) -> "Tensor":
        rows, columns = gradient.shape
        if not state:
            state["step"] = 0
            state["moment1"], state["moment2"] = gradient.new_zeros(rows, columns), gradient.new_zeros(rows, columns)
            state["left"], state["right"] = gradient.new_zeros(rows, rows), gradient.new_zeros(columns, columns)
        state["step"] += 1
        step = state["step"]
        state["left"].lerp_(gradient @ gradient.mT, 1 - self.shampoo_beta)
        state["right"].lerp_(gradient.mT @ gradient, 1 - self.shampoo_beta)
        if step == 1:
            state["left_basis"], state["right_basis"] = eigenbasis(state["left"]), eigenbasis(state["right"])
        elif step <= self.refresh_every or step % self.refresh_every == 0:
            state["left_basis"], order = turned(state["left"], state["left_basis"])
            state["moment2"] = state["moment2"][order]
            state["right_basis"], order = turned(state["right"], state["right_basis"])
            state["moment2"] = state["moment2"][:, order]
        left, right = state["left_basis"], state["right_basis"]
        state["moment1"].lerp_(gradient, 1 - self.beta1)
        state["moment2"].lerp_((left.mT @ gradient @ right).square(), 1 - self.beta2)
        mean = left.mT @ state["moment1"] @ right / (1 - self.beta1**step)
        root = (state["moment2"] / (1 - self.beta2**step)).sqrt()
        return left @ (mean / (root + self.eps)) @ right.mT


def eigenbasis(x: "Tensor") -> "Tensor":
    """Eigenvectors of a symmetric matrix as columns, largest eigenvalue first; computed in float64."""
    import torch

    return torch.linalg.eigh(x.double()).eigenvectors.flip(1).to(x.dtype)


def turned(x: "Tensor", basis: "Tensor") -> "tuple[Tensor, Tensor]":
    """One step of orthogonal iteration (Algorithm 4), and how the old columns were ordered for it: largest first."""
    import torch

    order = torch.einsum("ij,ij->j", basis, x @ basis).argsort(descending=True, stable=True)
    q, _ = torch.linalg.qr(x @ basis[:, order])
    return q, order
