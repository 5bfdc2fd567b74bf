"""Settings that all matrix optimizers share: hidden matrices take the rule, AdamW the rest, in one optimizer object.

The rest is the embedding, the output head and the norm gains. No torch until `build`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

from optim.groups import STANDARD, Group, OptimizerSettings, Shapes, hidden_matrices
from optim.mup import ADAM, Exponents, Growth
from optim.plan import Plan

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ADJUSTMENTS = ("original", "match_rms_adamw", "none")


def adjustment(adjust_lr: str, rows: int, columns: int) -> float:
    """What an update with singular values near 1 is multiplied by, so that one rate serves all shapes.

    `original` sqrt(max(1, rows/columns)), of Muon's author; `match_rms_adamw` 0.2 sqrt(max(rows, columns)), the size of
    AdamW's updates (arXiv:2502.16982); both under torch.optim.Muon's names. `none` 1.
    """
    if adjust_lr == "original":
        return sqrt(max(1, rows / columns))
    return 0.2 * sqrt(max(rows, columns)) if adjust_lr == "match_rms_adamw" else 1.0


def adjusted(adjust_lr: str) -> Exponents:
    """muP's exponents of a rule whose updates have singular values near 1 times the `adjustment`."""
    return Exponents(-0.5 if adjust_lr == "match_rms_adamw" else 0, ADAM.others)


@dataclass(frozen=True)
class MatrixOptimizer(OptimizerSettings, ABC):
    """A rule for hidden matrices (`direction`), AdamW for all other parameters."""

    adamw_lr_scale: float = 1.0
    """AdamW's rate as a multiple of the plan's"""
    adamw_beta1: float = 0.9
    """AdamW's decay of the first moment, per step"""
    adamw_beta2: float = 0.95
    """AdamW's decay of the second moment, per step"""
    adamw_eps: float = 1e-8
    """added to the root of AdamW's second moment"""

    needs_whole_matrices = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_share("adamw_beta1", "adamw_beta2")
        self.check_not_negative("adamw_eps")
        self.check_positive("adamw_lr_scale")

    def check_adjustment(self, adjust_lr: str) -> None:
        if adjust_lr not in ADJUSTMENTS:
            raise ValueError(f"optimizer.adjust_lr={adjust_lr!r} is unknown: use {', '.join(ADJUSTMENTS)}.")

    @abstractmethod
    def direction(self, gradient: "Tensor", state: dict[str, Any]) -> "Tensor":
        """The update of one matrix, to be multiplied by the rate; `state` is what the rule keeps between steps."""

    def groups(self, shapes: Shapes, plan: Plan, growth: Growth = STANDARD) -> list[Group]:
        """Hidden matrices; then AdamW's: the other matrices, which decay, and vectors, which do not."""
        name = type(self).__name__
        hidden = hidden_matrices(shapes)
        if not hidden:
            raise ValueError(f"optimizer {name} updates hidden matrices, this model has none: use optimizer=adamw.")
        tables = [key for key, shape in shapes.items() if len(shape) >= 2 and key not in set(hidden)]
        vectors = [key for key, shape in shapes.items() if len(shape) < 2]
        scale = self.adamw_lr_scale
        return [
            *self.alike(name, hidden, shapes, plan, growth, self.mup),
            *self.alike("AdamW", tables, shapes, plan, growth, ADAM, lr_scale=scale),
            *self.alike("AdamW", vectors, shapes, plan, growth, ADAM, lr_scale=scale, decays=False),
        ]

    def build(
        self,
        named_parameters: "Iterable[tuple[str, torch.nn.Parameter]]",
        plan: Plan,
        growth: Growth = STANDARD,
    ) -> "torch.optim.Optimizer":
        """The optimizer, at rate 0: the loop sets the rate of every step from the plan."""
        from optim.updates import DirectionOptimizer, adamw, configured, param_groups

        own, *rest = param_groups(self, named_parameters, plan, growth)
        others = adamw(rest, self.adamw_beta1, self.adamw_beta2, self.adamw_eps) if rest else None
        return configured(DirectionOptimizer([own], self.direction, others))
