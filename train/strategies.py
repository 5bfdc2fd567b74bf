"""Strategies: how one model lies on several devices. Each builds a Lightning Fabric; Fabric never starts processes.

The runner (or torchrun, or srun) starts one process per device with RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and
MASTER_PORT in the environment.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a login node validates a strategy without torch
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import Strategy

    from optim.groups import OptimizerSettings

PRECISIONS = {"float32": "32-true", "bf16": "bf16-mixed"}


@dataclass(frozen=True)
class Single:
    """One device."""

    max_devices = 1
    splits_matrices = False

    def build(self, accelerator: str) -> "Strategy":
        from lightning.fabric.strategies import SingleDeviceStrategy

        return SingleDeviceStrategy("cuda:0" if accelerator == "cuda" else accelerator)


@dataclass(frozen=True)
class DDP:
    """Weights on every device, gradients averaged (torch DistributedDataParallel)."""

    max_devices = None
    splits_matrices = False

    def build(self, accelerator: str) -> "Strategy":
        from lightning.fabric.plugins.environments import TorchElasticEnvironment
        from lightning.fabric.strategies import DDPStrategy

        return DDPStrategy(
            cluster_environment=TorchElasticEnvironment(),
            process_group_backend="nccl" if accelerator == "cuda" else "gloo",
            gradient_as_bucket_view=True,  # gradients live in the reduction buckets: no copy
        )


def build_fabric(strategy: Single | DDP, accelerator: str, precision: str) -> "Fabric":
    """A launched Fabric on this process's device. ValueError where there are more processes than the strategy takes."""
    import torch
    from lightning.fabric import Fabric

    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    check_devices(strategy, int(os.environ.get("WORLD_SIZE", 1)))
    world_size, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    fabric = Fabric(
        accelerator=accelerator,
        devices=local,
        num_nodes=world_size // local,
        strategy=strategy.build(accelerator),
        precision=PRECISIONS[precision],  # type: ignore[arg-type]
    )
    fabric.launch()
    return fabric


def check_devices(strategy: Single | DDP, devices: int) -> None:
    if strategy.max_devices is not None and devices > strategy.max_devices:
        raise ValueError(
            f"strategy={type(strategy).__name__.lower()} takes {strategy.max_devices} device, there are {devices}: "
            "use launch.devices=1 or strategy=ddp."
        )


def check_optimizer(strategy: Single | DDP, optimizer: "OptimizerSettings") -> None:
    if strategy.splits_matrices and optimizer.needs_whole_matrices:
        raise ValueError(
            f"optimizer {type(optimizer).__name__} needs whole matrices, strategy={type(strategy).__name__.lower()} "
            "splits them over the devices: use strategy=ddp, or optimizer=adamw, lion or sgd."
        )
