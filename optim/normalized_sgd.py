"""Normalized SGD: every step has the length of its rate, w <- w - rate * g/||g||."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optim.groups import STANDARD, OptimizerSettings
from optim.mup import Exponents, Growth
from optim.plan import Plan

if TYPE_CHECKING:
    import torch

NORMS = ("global", "per_parameter")


@dataclass(frozen=True)
class NormalizedSGD(OptimizerSettings):
    """torch's SGD on gradients of norm 1; without gradient, no step."""

    weight_decay: float | None = 0.0
    """lambda: a step shrinks the weights by rate * lambda"""
    norm: str = "global"
    """`global`: the norm of the whole gradient; `per_parameter`: of each tensor's own"""

    needs_whole_matrices = True  # the norm is of all of it

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm not in NORMS:
            raise ValueError(f"optimizer.norm={self.norm!r} is unknown: use {' or '.join(NORMS)}.")

    @property
    def mup(self) -> Exponents:
        return Exponents(0, 1 if self.norm == "global" else 0.5)

    def build(
        self,
        named_parameters: "Iterable[tuple[str, torch.nn.Parameter]]",
        plan: Plan,
        growth: Growth = STANDARD,
    ) -> "torch.optim.Optimizer":
        """The optimizer, at rate 0: the loop sets the rate of every step from the plan."""
        import torch

        from optim.updates import configured, param_groups

        optimizer = configured(torch.optim.SGD(param_groups(self, named_parameters, plan, growth), lr=0.0))
        optimizer.register_step_pre_hook(self.normalize)
        return optimizer

    def normalize(self, optimizer: "torch.optim.Optimizer", *_: Any) -> None:
        """Divides the gradients by their norm, where they lie. The norm is float64: no square underflows."""
        import torch

        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in gradients])
        if self.norm == "global":
            norms = torch.linalg.vector_norm(norms).expand_as(norms)
        factors = torch.where(norms > torch.finfo(torch.float32).tiny, 1 / norms, 0.0)
        for gradient, factor in zip(gradients, factors, strict=True):
            gradient.mul_(factor)
