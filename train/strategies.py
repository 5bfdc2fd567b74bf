"""Strategies: how one model lies on several devices. Each builds a Lightning Fabric strategy and an engine around it.

Fabric never starts processes: the runner (or torchrun, or srun) starts one per device, with RANK, LOCAL_RANK,
WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the environment. No torch until something is built.

bf16 is the same thing everywhere: products in bf16; weights, accumulation and reduction in float32. Single and DDP cast
by autocast, FSDP2 and DeepSpeed hand the model bf16 copies of their float32 shards.
"""

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # a login node validates a strategy without torch
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import Strategy
    from torch import nn

    from optim.groups import OptimizerSettings
    from train.engine import BuildOptimizer, Engine

OFFLOADS = ("cpu", "nvme")


class Devices(NamedTuple):
    """What a strategy builds for."""

    accelerator: str
    """cpu or cuda"""
    world_size: int
    bf16: bool
    clip_norm: float
    timeout: timedelta
    """how long a collective waits for the other ranks"""

    @property
    def backend(self) -> str:
        return "nccl" if self.accelerator == "cuda" else "gloo"


@dataclass(frozen=True)
class StrategySettings(ABC):
    splits_matrices = False
    """no process holds whole matrices when the weights are updated"""
    computes_in_bf16_itself = False
    """bf16 is not left to autocast"""

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    def check(self, world_size: int) -> None:  # noqa: B027
        """ValueError where it cannot run on so many devices; most run on any number."""

    @abstractmethod
    def build(self, devices: Devices) -> "Strategy":
        """Fabric's strategy."""

    def engine(
        self, fabric: "Fabric", module: "nn.Module", build_optimizer: "BuildOptimizer", clip_norm: float
    ) -> "Engine":
        from train.engine import TorchEngine

        return TorchEngine(fabric, module, build_optimizer, clip_norm)


@dataclass(frozen=True)
class Single(StrategySettings):
    """One device."""

    def check(self, world_size: int) -> None:
        if world_size > 1:
            raise ValueError(
                f"strategy=single takes 1 device, there are {world_size}: use launch.devices=1, or strategy=ddp, fsdp, "
                "zero1, zero2 or zero3."
            )

    def build(self, devices: Devices) -> "Strategy":
        from lightning.fabric.strategies import SingleDeviceStrategy

        return SingleDeviceStrategy("cuda:0" if devices.accelerator == "cuda" else devices.accelerator)


@dataclass(frozen=True)
class DDP(StrategySettings):
    """Weights on every device, gradients averaged (torch DistributedDataParallel)."""

    def build(self, devices: Devices) -> "Strategy":
        from lightning.fabric.strategies import DDPStrategy

        return DDPStrategy(
            process_group_backend=devices.backend,
            timeout=devices.timeout,
            gradient_as_bucket_view=True,  # gradients live in the reduction buckets: no copy
        )


@dataclass(frozen=True)
class FSDP(StrategySettings):
    """Weights, gradients and optimizer state split over the devices (torch fully_shard, FSDP2)."""

    replicas: int = 1
    """copies of the split model: devices are replicas x shards (hybrid sharding). 1: split over all devices"""

    splits_matrices = True
    computes_in_bf16_itself = True

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ValueError(f"launch.strategy.replicas={self.replicas} must be at least 1.")

    def check(self, world_size: int) -> None:
        if world_size % self.replicas:
            raise ValueError(
                f"launch.strategy.replicas={self.replicas} does not divide {world_size} devices: devices are "
                "replicas x shards."
            )

    def build(self, devices: Devices) -> "Strategy":
        import torch
        from lightning.fabric.strategies import ModelParallelStrategy
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        low = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if devices.bf16 else {}
        policy = MixedPrecisionPolicy(**low, cast_forward_inputs=False)

        def shard(model: Any, mesh: Any) -> "nn.Module":
            mesh = mesh if self.replicas > 1 else mesh["tensor_parallel"]
            for block in model.blocks:
                fully_shard(block, mesh=mesh, mp_policy=policy)
            return fully_shard(model, mesh=mesh, mp_policy=policy)

        strategy = ModelParallelStrategy(  # its mesh of two dimensions serves as replicas x shards
            shard,
            data_parallel_size=self.replicas,
            tensor_parallel_size=devices.world_size // self.replicas,
            process_group_backend=devices.backend,
            timeout=devices.timeout,
        )
        # every micro-batch is reduced to shards at once: whole gradients would take what sharding saves
        strategy._backward_sync_control = None
        return strategy


@dataclass(frozen=True)
class Zero(StrategySettings):
    """DeepSpeed ZeRO: optimizer state (stage 1), gradients too (2), weights too (3) split over the devices."""

    stage: int = 1
    """1, 2 or 3"""
    offload: str | None = None
    """where weights and optimizer state lie in stage 3: cpu, nvme, or null, on the device"""
    nvme_path: str | None = None
    """folder on the fast disk, for offload=nvme"""

    splits_matrices = True
    computes_in_bf16_itself = True

    def __post_init__(self) -> None:
        if self.stage not in (1, 2, 3):
            raise ValueError(f"launch.strategy.stage={self.stage} is unknown: use 1, 2 or 3.")
        if self.offload is not None and self.offload not in OFFLOADS:
            raise ValueError(f"launch.strategy.offload={self.offload} is unknown: use {', '.join(OFFLOADS)} or null.")
        if self.offload is not None and self.stage != 3:
            raise ValueError(f"launch.strategy.offload={self.offload} needs stage 3, it is {self.stage}.")
        if (self.offload == "nvme") != (self.nvme_path is not None):
            raise ValueError(
                f"launch.strategy.offload={self.offload} with launch.strategy.nvme_path={self.nvme_path}: "
                "nvme_path is the folder of offload=nvme, and of nothing else."
            )

    @property
    def name(self) -> str:
        return f"zero{self.stage}" + (f"_offload_{self.offload}" if self.offload else "")

    def build(self, devices: Devices) -> "Strategy":
        os.environ["DS_ACCELERATOR"] = devices.accelerator  # DeepSpeed guesses when it is imported
        from train.zero import ZeroStrategy, zero_config

        config = zero_config(
            self.stage, devices.bf16, devices.clip_norm, self.offload, self.nvme_path, devices.accelerator == "cuda"
        )
        return ZeroStrategy(config, process_group_backend=devices.backend, timeout=devices.timeout)

    def engine(
        self, fabric: "Fabric", module: "nn.Module", build_optimizer: "BuildOptimizer", clip_norm: float
    ) -> "Engine":
        from train.zero import ZeroEngine

        return ZeroEngine(fabric, module, build_optimizer)


def build_fabric(
    strategy: StrategySettings, accelerator: str, precision: str, clip_norm: float, timeout: timedelta
) -> "Fabric":
    """A launched Fabric on this process's device. ValueError where the strategy does not take so many processes."""
    import torch
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments import TorchElasticEnvironment

    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    world_size, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    strategy.check(world_size)
    if world_size % local:
        raise ValueError(f"{world_size} processes with {local} on this node: use the same number on every node.")
    bf16 = precision == "bf16"
    fabric = Fabric(
        accelerator=accelerator,
        devices=local,
        num_nodes=world_size // local,
        strategy=strategy.build(Devices(accelerator, world_size, bf16, clip_norm, timeout)),
        precision="bf16-mixed" if bf16 and not strategy.computes_in_bf16_itself else "32-true",
        plugins=None if isinstance(strategy, Single) else [TorchElasticEnvironment()],
    )
    fabric.launch()
    return fabric


def check_optimizer(strategy: StrategySettings, optimizer: "OptimizerSettings") -> None:
    if strategy.splits_matrices and optimizer.needs_whole_matrices:
        raise ValueError(
            f"optimizer {type(optimizer).__name__} needs whole matrices, strategy={strategy.name} splits them over "
            "the devices: use strategy=ddp, or optimizer=adamw, lion or sgd."
        )
