"""AdamW, as torch has it; weight decay on matrices only."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class AdamW:
    """Settings of the optimizer, checked without torch; `build` makes it."""

    beta1: float = 0.9
    """decay of the first moment, per step"""
    beta2: float = 0.95
    """decay of the second moment, per step"""
    eps: float = 1e-8
    """added to the root of the second moment"""
    weight_decay: float = 0.1
    """as in torch: decoupled, multiplied by the learning rate; norm gains are not decayed"""

    def __post_init__(self) -> None:
        for key in ("beta1", "beta2"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"optimizer.{key}={getattr(self, key)} must be in [0, 1).")
        for key in ("eps", "weight_decay"):
            if getattr(self, key) < 0:
                raise ValueError(f"optimizer.{key}={getattr(self, key)} must not be negative.")

    def build(self, parameters: "Iterable[torch.nn.Parameter]") -> "torch.optim.AdamW":
        """The optimizer of `parameters`, at rate 0: the loop sets the rate of every step from the plan."""
        import torch

        matrices: list[torch.nn.Parameter] = []
        vectors: list[torch.nn.Parameter] = []
        for parameter in parameters:
            (matrices if parameter.ndim >= 2 else vectors).append(parameter)
        groups = [{"params": matrices, "weight_decay": self.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=0.0, betas=(self.beta1, self.beta2), eps=self.eps, fused=True)
