"""DeepSpeed's ZeRO behind the engine of `train.engine`, on CUDA and on CPU with gloo.

DeepSpeed accumulates, reduces, clips and updates; the plan's changing batch, the scaling of the loss, the check for
numbers that are not finite and the checkpoints are ours. What it needs for that: accumulation that it does not manage,
an explicit clipping norm, and float32 for accumulation and communication.
"""

import fcntl
import importlib
import logging
import math
import os
from collections.abc import Iterator
from typing import Any

import deepspeed
import torch
from deepspeed import comm
from deepspeed.utils import set_z3_leaf_modules
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy, DeepSpeedStrategy
from torch import nn
from torch.utils import cpp_extension

from train.engine import BuildOptimizer, Engine
from train.fragments import Fragment
from train.model import Block

BUCKET = 500_000_000  # elements that are reduced at once; DeepSpeed allocates as many, whatever the model has


class KernelLock:
    """The lock with which processes take turns to compile DeepSpeed's extensions, as one that the kernel frees.

    torch's own is a file that a killed process leaves behind: all later ones would wait for it for ever.
    """

    def __init__(self, lock_file_path: str, **_: Any) -> None:
        self.path = lock_file_path

    def try_acquire(self) -> bool:
        return self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB)

    def wait(self) -> None:
        self._lock(fcntl.LOCK_EX)
        self.release()

    def release(self) -> None:
        os.close(self.fd)

    def _lock(self, how: int) -> bool:
        self.fd = os.open(self.path, os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(self.fd, how)
        except BlockingIOError:
            os.close(self.fd)
            return False
        return True


cpp_extension.FileBaton = KernelLock  # type: ignore[assignment, misc]
# DeepSpeed's own reduction through shared memory needs a compiler, and its start waits for ever for a rank that was
# killed; gloo does neither
importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # type: ignore[attr-defined]


class ZeroStrategy(DeepSpeedStrategy):
    """Fabric's strategy, which refuses CPU, on any device."""

    def __init__(self, config: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(config=config, logging_level=logging.ERROR, **kwargs)
        self._config_initialized = True  # the precision is in the configuration

    def setup_environment(self) -> None:
        DDPStrategy.setup_environment(self)

    def _initialize_engine(self, model: nn.Module, optimizer: Any = None, scheduler: Any = None) -> Any:
        # without Fabric's number of the device, which a CPU has not: DeepSpeed takes LOCAL_RANK's
        engine, optimizer, _, scheduler = deepspeed.initialize(
            config=self.config, model=model, optimizer=optimizer, lr_scheduler=scheduler, dist_init_required=False
        )
        return engine, optimizer, scheduler

    def _setup_distributed(self) -> None:
        self._set_world_ranks()
        self._init_deepspeed_distributed()


def zero_config(
    stage: int, bf16: bool, clip_norm: float, offload: str | None, nvme_path: str | None, on_cuda: bool
) -> dict[str, Any]:
    """DeepSpeed's configuration. `offload`: None, cpu or nvme (optimizer state and, in stage 3, parameters)."""
    zero: dict[str, Any] = {"stage": stage}
    if offload is not None:
        where: dict[str, Any] = {"device": offload, "pin_memory": on_cuda}
        where |= {"nvme_path": nvme_path} if offload == "nvme" else {}
        zero |= {"offload_optimizer": where, "offload_param": where}
    return {
        "train_micro_batch_size_per_gpu": 1,  # the real sizes are the plan's: nothing is derived from this
        "gradient_accumulation_steps": 1,  # it would divide by it
        "managed_gradient_accumulation": False,
        "gradient_clipping": clip_norm,  # 1.0 where the key is absent
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
        "bf16": {"enabled": bf16, "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
    }


class ZeroEngine(Engine):
    """DeepSpeed's engine, whose optimizer updates flat float32 shares of all parameters of a group."""

    def __init__(self, fabric: Fabric, module: nn.Module, build_optimizer: BuildOptimizer) -> None:
        assert isinstance(fabric.strategy, ZeroStrategy) and isinstance(fabric.strategy.config, dict)
        self.fabric, self.module = fabric, module
        parameters = module.named_parameters() if fabric.strategy.config["bf16"]["enabled"] else ()
        initial = {name: p.detach().to("cpu", torch.float32, copy=True) for name, p in parameters}
        config = fabric.strategy.config["zero_optimization"]
        config["reduce_bucket_size"] = min(BUCKET, sum(p.numel() for p in module.parameters()))
        if config["stage"] == 3:  # gathered as one, outside of what is compiled and computed again
            set_z3_leaf_modules(module, [Block])
        self.model, _ = fabric.setup(module, build_optimizer(module))
        engine: Any = self.model._forward_module
        self.deepspeed, self.optimizer = engine, engine.basic_optimizer
        for group in self.groups(write=True) if initial else ():  # DeepSpeed made its float32 weights of bf16 ones
            for piece in group:
                piece.weights.copy_(initial[piece.name].view(-1)[piece.start : piece.start + piece.numel])

    def gradient_norm(self) -> None:
        return None

    def update(self, lr: float) -> float:
        self.set_rate(lr)
        self.deepspeed.step()
        return math.inf if self._zero.overflow else float(self.deepspeed.get_global_grad_norm())

    def skip(self) -> None:
        """Lets DeepSpeed see a norm that is not valid: then it clears its buffers and updates nothing."""
        name = "_get_norm_groups" if self._stage == 3 else "scaled_global_norm"
        invalid = torch.tensor(-1.0, device=self.fabric.device)
        setattr(self._zero, name, lambda: [invalid] if self._stage == 3 else invalid)
        try:
            self.deepspeed.step()
        finally:
            delattr(self._zero, name)
        assert self._zero.overflow

    @property
    def _zero(self) -> Any:
        return self.deepspeed.optimizer

    @property
    def _stage(self) -> int:
        return self.deepspeed.zero_optimization_stage()

    def groups(self, write: bool = False) -> Iterator[list[Fragment]]:
        return self._groups_of_stage_3(write) if self._stage == 3 else self._groups(write)

    def _groups(self, write: bool) -> Iterator[list[Fragment]]:
        flat = [group["params"][0] for group in self.optimizer.param_groups]
        fragments = []
        for name, parameter in self.module.named_parameters():
            mapping = parameter._hp_mapping  # type: ignore[attr-defined]
            if mapping is not None:  # something of it lies here
                holder, here = flat[mapping.param_group_index], mapping.hp_fragment_address
                start = mapping.lp_fragment_address.start
                fragments.append(Fragment(name, start, here.numel, holder, here.start, self.optimizer.state[holder]))
        yield fragments
        if write:
            self._zero.update_lp_params()

    def _groups_of_stage_3(self, write: bool) -> Iterator[list[Fragment]]:
        zero, names = self._zero, {p: name for name, p in self.module.named_parameters()}
        if write:  # small parameters stay whole on every rank: they are split here, and gathered anew below
            zero._partition_all_parameters()
        for i, parameters in enumerate(zero.fp16_groups):
            swapped = zero._swappable_optimizer_subgroup(i)
            if swapped:
                zero._optimizer_states_and_gradient_swap_in(i)
            holder = zero.fp32_partitioned_groups_flat[i]
            fragments = []
            for parameter in parameters:
                _, offset, size = zero.grad_position[zero.get_param_id(parameter)]
                start = size * comm.get_rank()
                numel = min(size, parameter.ds_numel - start)  # the last ranks hold padding
                if numel > 0:
                    state = self.optimizer.state[holder]
                    fragments.append(Fragment(names[parameter], start, numel, holder, offset, state))
            yield fragments
            if write:
                zero._reassign_or_swap_out_partitioned_parameters(i)
            if swapped:
                zero._optimizer_states_and_gradient_swap_out(i) if write else zero._release_swap_buffers(i)
        if write and zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
