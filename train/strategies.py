"""Strategies: how one model lies on several devices. Each builds a Lightning Fabric; Fabric never starts processes.

The runner (or torchrun, or srun) starts one process per device with RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and
MASTER_PORT in the environment.
"""

import os
from dataclasses import dataclass

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.fabric.strategies import DDPStrategy, SingleDeviceStrategy, Strategy

PRECISIONS = {"float32": "32-true", "bf16": "bf16-mixed"}


@dataclass(frozen=True)
class Single:
    """One device."""

    def build(self, accelerator: str) -> Strategy:
        if int(os.environ.get("WORLD_SIZE", 1)) != 1:
            raise ValueError(
                f"launch.strategy=single runs on one device, WORLD_SIZE is {os.environ['WORLD_SIZE']}: "
                "use launch.devices=1 or strategy=ddp."
            )
        return SingleDeviceStrategy("cuda:0" if accelerator == "cuda" else accelerator)


@dataclass(frozen=True)
class DDP:
    """Weights on every device, gradients averaged (torch DistributedDataParallel)."""

    def build(self, accelerator: str) -> Strategy:
        # static graph and views: gradients live in the reduction buckets, no copy
        return DDPStrategy(
            cluster_environment=TorchElasticEnvironment(),
            process_group_backend="nccl" if accelerator == "cuda" else "gloo",
            gradient_as_bucket_view=True,
        )


def build_fabric(strategy: Single | DDP, accelerator: str, precision: str) -> Fabric:
    """A launched Fabric on this process's device."""
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
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
