"""Averaged weights beside the model's, in float32: updated after every step, evaluated in the model's place.

Everything is done fragment by fragment, on what this process holds of the weights: right for replicas and for shards.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from optim.averaging import Average
from optim.plan import Plan
from train.engine import Engine
from train.fragments import Fragment


class Averages:
    """The averages of one run, by name. Step and plan say all there is to know beside the weights themselves."""

    def __init__(self, settings: Mapping[str, Average], engine: Engine, plan: Plan) -> None:
        """All start at the present weights of `engine`."""
        self.engine = engine
        tokens = np.append(plan.steps().tokens_before, plan.final_tokens)
        self._weights = {name: average.weights(tokens) for name, average in settings.items()}
        self._averaged: dict[str, dict[tuple[str, int], Tensor]] = {name: {} for name in settings}
        self.start()

    def start(self) -> None:
        """All are the present weights."""
        if self._averaged:
            own = self._copy()
            for averaged in self._averaged.values():
                averaged.update({place: value.clone() for place, value in own.items()})

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the model's weights after `step` steps of the plan (1 after the first)."""
        due = {name: weight for name, weights in self._weights.items() if (weight := float(weights[step - 1]))}
        for fragments in self.engine.groups() if due else ():
            newest = [piece.weights for piece in fragments]
            for name, weight in due.items():
                averaged = [self._averaged[name][piece.name, piece.start] for piece in fragments]
                torch._foreach_lerp_(averaged, newest, weight)

    def begun(self, step: int) -> list[str]:
        """Names of the averages that hold an iterate after `step` steps."""
        return [name for name, weights in self._weights.items() if weights[:step].any()]

    @contextmanager
    def applied(self, name: str) -> Iterator[None]:
        """Within it the model has the averaged weights; after it, whatever happened, its own, bit for bit."""
        own = self._copy()
        try:
            self._put(self._averaged[name])
            yield
        finally:
            self._put(own)

    def of(self, piece: Fragment) -> dict[str, Tensor]:
        """Average -> averaged weights of a fragment; writing to them changes the average."""
        return {name: averaged[piece.name, piece.start] for name, averaged in self._averaged.items()}

    def _copy(self) -> dict[tuple[str, int], Tensor]:
        return {(p.name, p.start): p.weights.clone() for fragments in self.engine.groups() for p in fragments}

    @torch.no_grad()
    def _put(self, values: Mapping[tuple[str, int], Tensor]) -> None:
        # in place: optimizer, DDP and shards hold on to the parameters themselves
        for fragments in self.engine.groups(write=True):
            for piece in fragments:
                piece.weights.copy_(values[piece.name, piece.start])
