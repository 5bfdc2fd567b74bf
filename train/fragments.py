"""What one process holds of a model: contiguous pieces of parameters, with the optimizer's state of each.

    whole parameter (flat)   [..............................]
    this process's fragment            [.........]              start, numel

Every strategy lays a parameter out as such pieces: all of it (single, ddp), whole rows (FSDP), a share of the flat
parameter (ZeRO 3), whatever of it falls into a share of all parameters together (ZeRO 1, 2). Checkpoints and averages
know nothing else of strategies, so they go from any layout to any other.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Fragment:
    """A piece of one parameter: float32 weights, as the optimizer updates them, and its state."""

    name: str
    """of the parameter"""
    start: int
    """of the piece in the flat parameter"""
    numel: int
    holder: Tensor
    """the tensor the optimizer updates: a parameter, or ZeRO's flat share of many"""
    offset: int
    """of the piece in the flat holder"""
    state: dict[str, Any]
    """the optimizer's state of the holder"""

    @property
    def weights(self) -> Tensor:
        """float32 [numel]; writing to it changes the weights."""
        return self._view(self.holder)

    def elementwise(self) -> dict[str, Tensor]:
        """State with a number per weight, each float32 [numel]; writing to it changes the state."""
        return {key: self._view(value) for key, value in self.state.items() if self._is_elementwise(value)}

    def other(self) -> dict[str, Any]:
        """State of the whole holder, tensors and numbers: preconditioners, counters."""
        return {key: value for key, value in self.state.items() if not self._is_elementwise(value)}

    def make(self, key: str) -> Tensor:
        """The elementwise state `key`, zeros where the optimizer has none yet."""
        if key not in self.state:
            self.state[key] = torch.zeros_like(self.holder, memory_format=torch.preserve_format).detach()
        return self._view(self.state[key])

    def _is_elementwise(self, value: Any) -> bool:
        same = isinstance(value, Tensor) and value.shape == self.holder.shape
        return same and value.stride() == self.holder.stride()  # a transposed preconditioner is not

    def _view(self, tensor: Tensor) -> Tensor:
        return _local(tensor).view(-1)[self.offset : self.offset + self.numel]


def whole_or_rows(parameters: Iterable[tuple[str, nn.Parameter]], optimizer: torch.optim.Optimizer) -> list[Fragment]:
    """Fragments of parameters that torch's strategies hold: replicas, or FSDP's rows."""
    return [fragment for name, p in parameters if (fragment := _of(name, p, optimizer.state[p])).numel]


def _of(name: str, parameter: nn.Parameter, state: dict[str, Any]) -> Fragment:
    return Fragment(
        name, _first_row(parameter) * prod(parameter.shape[1:]), _local(parameter).numel(), parameter, 0, state
    )


def _first_row(parameter: Tensor) -> int:
    if not isinstance(parameter, DTensor):
        return 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return offset[0]


def _local(tensor: Tensor) -> Tensor:
    detached = tensor.detach()
    return detached.to_local() if isinstance(detached, DTensor) else detached


def overlaps(start: int, numel: int, saved: Iterable[tuple[int, int, str]]) -> Iterator[tuple[str, slice, slice]]:
    """Which saved pieces (start, numel, key) make up [start, start + numel): (key, slice of it, slice of ours).

    ValueError where they leave a gap.
    """
    covered = start
    for other_start, other_numel, key in sorted(saved):
        begin, end = max(covered, other_start), min(start + numel, other_start + other_numel)
        if begin < end:
            if begin > covered:
                break
            yield key, slice(begin - other_start, end - other_start), slice(begin - start, end - start)
            covered = end
    if covered < start + numel:
        raise ValueError(f"elements {covered} to {start + numel} are missing")
