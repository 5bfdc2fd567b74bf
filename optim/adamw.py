"""AdamW, as torch has it; weight decay on matrices only."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optim.groups import STANDARD, OptimizerSettings
from optim.mup import ADAM, Exponents, Growth
from optim.plan import Plan

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class AdamW(OptimizerSettings):
    """Settings of the optimizer, checked without torch; `build` makes it."""

    beta1: float = 0.9
    """decay of the first moment, per step"""
    beta2: float = 0.95
    """decay of the second moment, per step"""
    eps: float = 1e-8
    """added to the root of the second moment"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_share("beta1", "beta2")
        self.check_not_negative("eps")

    @property
    def mup(self) -> Exponents:
        return ADAM

    def build(
        self,
        named_parameters: "Iterable[tuple[str, torch.nn.Parameter]]",
        plan: Plan,
        growth: Growth = STANDARD,
    ) -> "torch.optim.Optimizer":
        """The optimizer, at rate 0: the loop sets the rate of every step from the plan."""
        from optim.updates import adamw, configured, param_groups

        return configured(adamw(param_groups(self, named_parameters, plan, growth), self.beta1, self.beta2, self.eps))
