"""Lion (Chen et al. 2023, arXiv:2302.06675): the sign of an average of gradients, one state tensor per parameter."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optim.groups import STANDARD, OptimizerSettings
from optim.mup import ADAM, Exponents, Growth
from optim.plan import Plan

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Lion(OptimizerSettings):
    """w <- w - rate * sign(beta1 m + (1 - beta1) g), then m <- beta2 m + (1 - beta2) g."""

    beta1: float = 0.9
    """weight of the average, beside the gradient, in the update's sign"""
    beta2: float = 0.99
    """decay of the average, per step"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_share("beta1", "beta2")

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
        from optim.updates import DirectionOptimizer, configured, param_groups

        return configured(DirectionOptimizer(param_groups(self, named_parameters, plan, growth), self.direction))

    def direction(self, gradient: "Tensor", state: dict[str, Any]) -> "Tensor":
        if not state:
            state["average"] = gradient.new_zeros(gradient.shape)
        update = gradient.lerp(state["average"], self.beta1).sign_()
        state["average"].lerp_(gradient, 1 - self.beta2)
        return update
