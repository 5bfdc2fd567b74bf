"""The engine: one model and its optimizer as a strategy laid them out, behind the five things a step needs.

    with engine.accumulating(last):  forward; engine.backward(loss)     per micro-batch
    engine.gradient_norm()                                              clips; None where only the update knows it
    engine.update(lr)  or  engine.skip()

`TorchEngine` serves single, ddp and fsdp; `train.zero.ZeroEngine` DeepSpeed.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from train.fragments import Fragment, whole_or_rows

BuildOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


class Engine(ABC):
    """`model` is what is called, as the strategy wrapped it; `module` is the transformer inside."""

    fabric: Fabric
    model: nn.Module
    module: nn.Module
    optimizer: torch.optim.Optimizer

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a micro-batch: before the last one of a step, gradients may stay local."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of this rank's `loss`; the strategy averages over ranks."""
        self.fabric.backward(loss, model=self.model)  # type: ignore[arg-type]

    @abstractmethod
    def gradient_norm(self) -> Tensor | None:
        """Clips the whole gradient and gives its norm before that, a scalar on the device; None: see `update`."""

    @abstractmethod
    def update(self, lr: float) -> float | None:
        """Updates the weights at the plan's rate, of which a parameter group may have a multiple, `lr_scale`, and
        forgets the gradients. Gives the norm of the whole gradient where only the update knows it; where that is not
        finite, weights and optimizer are as they were."""

    @abstractmethod
    def skip(self) -> None:
        """Forgets the gradients of this step."""

    @abstractmethod
    def groups(self, write: bool = False) -> Iterator[list[Fragment]]:
        """All fragments that this process holds, in groups that are in memory together. A collective with `write`: what
        was written to a group's weights is then what the model computes with."""

    def set_rate(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)


class TorchEngine(Engine):
    """Parameters that the optimizer updates where they are: replicas, or FSDP's shards."""

    def __init__(self, fabric: Fabric, module: nn.Module, build_optimizer: BuildOptimizer, clip_norm: float) -> None:
        self.fabric, self.module, self.clip_norm = fabric, module, clip_norm
        self.model = fabric.setup_module(module)
        # after the strategy has placed the parameters: FSDP makes new ones of them
        self.optimizer = build_optimizer(module)
        self._sharded = [m for m in module.modules() if isinstance(m, FSDPModule)]

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        if self.fabric.strategy._backward_sync_control is None:
            return nullcontext()
        return self.fabric.no_backward_sync(self.model, enabled=not last)  # type: ignore[arg-type]

    def gradient_norm(self) -> Tensor:
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.clip_norm or math.inf)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def update(self, lr: float) -> None:
        self.set_rate(lr)
        self.optimizer.step()
        self.skip()

    def skip(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def groups(self, write: bool = False) -> Iterator[list[Fragment]]:
        for module in self._sharded:  # FSDP keeps the root's parameters together after a forward pass
            module.reshard()
        yield whole_or_rows(self.module.named_parameters(), self.optimizer)
