"""SOAP (Vyas et al. 2024, arXiv:2409.11321): Adam in the eigenbases of Shampoo's L and R."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optim.matrix import MatrixOptimizer

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SOAP(MatrixOptimizer):
    """The first moment is kept in the weights' coordinates, the second in those of the eigenbases (as in the paper).

    When a basis turns, the second moment turns with it, as variances of uncorrelated entries do. The paper leaves it,
    which is the same for small turns; but bases turn at random where gradients lack rank, and then updates explode.
    """

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
        import torch

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
            exact = gradient.double()  # rounding of float32's squares would turn the bases of small singular values
            state["left_basis"] = eigenbasis(exact @ exact.mT).to(gradient.dtype)
            state["right_basis"] = eigenbasis(exact.mT @ exact).to(gradient.dtype)
        elif step <= self.refresh_every or step % self.refresh_every == 0:
            old_left, old_right = state["left_basis"], state["right_basis"]
            state["left_basis"], state["right_basis"] = (
                turned(state["left"], old_left),
                turned(state["right"], old_right),
            )
            by_left, by_right = state["left_basis"].mT @ old_left, state["right_basis"].mT @ old_right
            state["moment2"] = by_left.square() @ state["moment2"] @ by_right.square().mT
        left, right = state["left_basis"], state["right_basis"]
        state["moment1"].lerp_(gradient, 1 - self.beta1)
        state["moment2"].lerp_((left.mT @ gradient @ right).square(), 1 - self.beta2)
        mean = left.mT @ state["moment1"] @ right / (1 - self.beta1**step)
        root = (state["moment2"] / (1 - self.beta2**step)).sqrt()
        # Entries that are zero come out as rounding, up to about eps times the largest. There are rows * columns of
        # them: only a guard well above lets their sum vanish beside the update.
        guard = max(rows, columns) * torch.finfo(root.dtype).eps * root.amax()
        return left @ (mean / (root.clamp(min=guard) + self.eps)) @ right.mT


def eigenbasis(x: "Tensor") -> "Tensor":
    """Eigenvectors of a symmetric matrix as columns, largest eigenvalue first."""
    import torch

    return torch.linalg.eigh(x).eigenvectors.flip(1)


def turned(x: "Tensor", basis: "Tensor") -> "Tensor":
    """One step of orthogonal iteration (Algorithm 4), with the columns of the largest eigenvalues first."""
    import torch

    order = torch.einsum("ij,ij->j", basis, x @ basis).argsort(descending=True, stable=True)
    return torch.linalg.qr(x @ basis[:, order]).Q
