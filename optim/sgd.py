"""SGD, as torch has it, but for weight decay: it is decoupled here as everywhere, and on matrices only."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optim.groups import STANDARD, OptimizerSettings
from optim.mup import Exponents, Growth
from optim.plan import Plan

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SGD(OptimizerSettings):
    """w <- w - rate * b, with b <- momentum * b + gradient."""

    weight_decay: float | None = 0.0
    """lambda: a step shrinks the weights by rate * lambda"""
    momentum: float = 0.0
    """share of the last update that is added to the next"""
    nesterov: bool = False
    """the update is gradient + momentum * b"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_share("momentum")
        if self.nesterov and self.momentum == 0:
            raise ValueError("optimizer.nesterov=true needs optimizer.momentum > 0, it is 0.")

    @property
    def mup(self) -> Exponents:
        return Exponents(0, 1)

    def build(
        self,
        named_parameters: "Iterable[tuple[str, torch.nn.Parameter]]",
        plan: Plan,
        growth: Growth = STANDARD,
    ) -> "torch.optim.Optimizer":
        """The optimizer, at rate 0: the loop sets the rate of every step from the plan."""
        import torch

        from optim.updates import configured, param_groups

        groups = param_groups(self, named_parameters, plan, growth)
        return configured(torch.optim.SGD(groups, lr=0.0, momentum=self.momentum, nesterov=self.nesterov))
