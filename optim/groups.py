"""What every optimizer's settings share: which parameters form a group, and how their weights decay. No torch.

    settings.groups(shapes, plan, growth) -> [Group, ...]      names and shapes of the parameters -> who updates what

The same function groups the real parameters when the optimizer is built and the planned ones in a dry run. muP's rates
(`optim.mup`) are groups' multiples of the plan's rate, so they hold under every strategy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from optim.mup import Exponents, Growth, is_hidden, rate_factor
from optim.plan import Plan

Shapes = Mapping[str, tuple[int, ...]]
"""name of a parameter -> its shape, in the model's order"""

STANDARD = Growth()


class Group(NamedTuple):
    """Parameters that are updated by one rule."""

    optimizer: str
    """name of the rule"""
    names: tuple[str, ...]
    parameters: int
    """elements of all tensors together"""
    weight_decay: float
    """lambda: a step shrinks the weights by rate * lambda"""
    lr_scale: float
    """the group's rate as a multiple of the plan's"""
    decay_lr: float | None
    """the rate of weight decay in every step; None: the step's own"""


def hidden_matrices(shapes: Shapes) -> list[str]:
    """2-D weights that are neither embedding nor output head, whose rows are tokens and not directions."""
    return [name for name, shape in shapes.items() if is_hidden(name, shape)]


@dataclass(frozen=True)
class OptimizerSettings:
    """Decoupled weight decay of matrices, never of norm gains; exactly one of `weight_decay` and `timescale` is set."""

    weight_decay: float | None = 0.1
    """lambda, as in torch's AdamW: a step shrinks the weights by rate * lambda"""
    timescale: float | None = None
    """tau = B/(peak_lr * lambda * D), the updates' memory (arXiv:2505.13738); sets lambda

    In tokens B is the plan's first batch and D its budget: tau is a share of the run that keeps the first batch. A ramp
    therefore has the lambda of the constant batch that it is compared with, though it makes fewer steps.
    """
    decay_follows_schedule: bool | None = None
    """false: every step shrinks the weights by peak_lr * lambda, whatever the schedule does; null: true"""

    needs_whole_matrices = False  # its rule takes whole tensors, so no strategy may split them

    def __post_init__(self) -> None:
        if (self.weight_decay is None) == (self.timescale is None):
            raise ValueError(
                f"optimizer.weight_decay={self.weight_decay} and optimizer.timescale={self.timescale}: "
                "give one of them and set the other to null."
            )
        if self.timescale is not None and self.timescale <= 0:
            raise ValueError(f"optimizer.timescale={self.timescale} must be positive: it is a share of the run.")
        self.check_not_negative("weight_decay")

    def check_share(self, *keys: str) -> None:
        for key in keys:
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"optimizer.{key}={getattr(self, key)} must be in [0, 1).")

    def check_not_negative(self, *keys: str) -> None:
        for key in keys:
            if (getattr(self, key) or 0) < 0:
                raise ValueError(f"optimizer.{key}={getattr(self, key)} must not be negative.")

    def check_positive(self, *keys: str) -> None:
        for key in keys:
            if not getattr(self, key) > 0:
                raise ValueError(f"optimizer.{key}={getattr(self, key)} must be positive.")

    @property
    def mup(self) -> Exponents | None:
        """How the rates follow the width under muP; None: not known."""
        return None

    def groups(self, shapes: Shapes, plan: Plan, growth: Growth = STANDARD) -> list[Group]:
        """Matrices, which decay, and vectors, which do not, apart where muP gives them different rates.

        ValueError where the plan leaves no room for the decay, or muP has no rule for the optimizer.
        """
        name = type(self).__name__
        matrices = [key for key, shape in shapes.items() if len(shape) >= 2]
        vectors = [key for key, shape in shapes.items() if len(shape) < 2]
        return [
            *self.alike(name, matrices, shapes, plan, growth, self.mup),
            *self.alike(name, vectors, shapes, plan, growth, self.mup, decays=False),
        ]

    def alike(
        self,
        optimizer: str,
        names: Sequence[str],
        shapes: Shapes,
        plan: Plan,
        growth: Growth,
        exponents: Exponents | None,
        decays: bool = True,
        lr_scale: float = 1.0,
    ) -> list[Group]:
        """A group for each rate that muP gives to these parameters; one, or none without parameters, at `STANDARD`."""
        if exponents is None and growth != STANDARD:
            raise ValueError(
                f"model.parametrization=mup: optimizer {optimizer} has no rate there that is known to transfer between "
                "widths. Use adamw, sgd, normalized_sgd, lion, muon, swan or shampoo, or model.parametrization=null."
            )
        same: dict[float, list[str]] = {}
        for name in names:
            factor = 1.0 if exponents is None else rate_factor(exponents, growth, name, shapes[name])
            same.setdefault(factor, []).append(name)
        return [self.group(optimizer, those, shapes, plan, decays, lr_scale, factor) for factor, those in same.items()]

    def group(
        self,
        optimizer: str,
        names: Sequence[str],
        shapes: Shapes,
        plan: Plan,
        decays: bool = True,
        lr_scale: float = 1.0,
        mup_factor: float = 1.0,
    ) -> Group:
        lr_scale *= mup_factor
        rate = plan.peak_lr * lr_scale
        steps = plan.total_tokens / (int(plan.segments.batch_size[0]) * plan.sequence_length)  # at the first batch
        if self.timescale is not None:
            decay = 1 / (self.timescale * rate * steps)
        else:
            assert self.weight_decay is not None
            decay = self.weight_decay / mup_factor  # a step shrinks the weights by as much at every width
        largest = rate  # of all steps; a ramp may raise the rate above the peak
        if self.decay_follows_schedule is not False:
            largest = max(rate, float(plan.steps().lr.max()) * lr_scale)
        if decays and largest * decay >= 1:
            given = f"timescale={self.timescale}" if self.weight_decay is None else f"weight_decay={self.weight_decay}"
            raise ValueError(
                f"optimizer.{given}: a step at rate {largest:g} would multiply the weights by {1 - largest * decay:g}. "
                f"Use timescale > {largest / rate / steps:.3g}, or weight_decay < {1 / largest:.3g}."
            )
        return Group(
            optimizer=optimizer,
            names=tuple(names),
            parameters=sum(prod(shapes[name]) for name in names),
            weight_decay=decay if decays else 0.0,
            lr_scale=lr_scale,
            decay_lr=rate if self.decay_follows_schedule is False else None,
        )
