"""Averaged weights beside the model's, in float32: updated after every step, evaluated in the model's place.

Everything is done parameter by parameter, on what this process holds of it: right for replicas and for shards alike.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from optim.averaging import Average
from optim.plan import Plan


class Averages:
    """The averages of one run, by name. Step and plan say all there is to know beside the weights themselves."""

    def __init__(
        self, settings: Mapping[str, Average], parameters: Iterable[tuple[str, nn.Parameter]], plan: Plan
    ) -> None:
        """All start at the present values of `parameters` (names and parameters, as the strategy placed them)."""
        named = dict(parameters)
        self._names, self._parameters = list(named), list(named.values())
        tokens = np.append(plan.steps().tokens_before, plan.final_tokens)
        self._weights = {name: average.weights(tokens) for name, average in settings.items()}
        self._averaged = {
            name: [p.detach().to(torch.float32, copy=True) for p in self._parameters] for name in settings
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the model's weights after `step` steps (1 after the first)."""
        if not self._averaged:
            return
        newest = [p.detach().float() for p in self._parameters]  # no copy where they are float32
        for name, averaged in self._averaged.items():
            weight = float(self._weights[name][step - 1])
            if weight:
                torch._foreach_lerp_(averaged, newest, weight)

    def begun(self, step: int) -> list[str]:
        """Names of the averages that hold an iterate after `step` steps."""
        return [name for name, weights in self._weights.items() if weights[:step].any()]

    @contextmanager
    def applied(self, name: str) -> Iterator[None]:
        """Within it the model has the averaged weights; after it, whatever happened, its own, bit for bit."""
        own = [p.detach().clone() for p in self._parameters]
        try:
            self._put(self._averaged[name])
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> None:
        # in place: optimizer, DDP and shards hold on to the parameters themselves
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Average -> parameter -> averaged weights."""
        return {name: dict(zip(self._names, averaged, strict=True)) for name, averaged in self._averaged.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        for name, averaged in self._averaged.items():
            for parameter, value in zip(self._names, averaged, strict=True):
                value.copy_(state[name][parameter])
