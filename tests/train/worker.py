"""One process of the pool in conftest.py: trains points as a rank of any world size, one after another.

Starting Python, torch and DeepSpeed takes seconds; a process that stays takes them once.
"""

import gc
import os
import sys
import traceback
from multiprocessing.connection import Client
from pathlib import Path

import torch
import torch.distributed as dist


def main(address: str) -> None:
    torch.set_num_threads(1)
    with Client(address) as connection:
        while (job := connection.recv()) is not None:
            config, folder, environment, steps = job
            os.environ |= environment
            try:
                connection.send(("status", life(config, Path(folder), steps)))
            except Exception:
                connection.send(("error", traceback.format_exc()))
            finally:
                forget()


def life(config: dict, folder: Path, steps: int | None) -> str:
    from train.loop import train
    from train.run import build_run

    calls = iter(range(10**6))

    def stop() -> str | None:
        return "SIGTERM" if steps is not None and next(calls) >= steps - 1 else None

    return train(build_run(config, folder), {"threads": 1}, stop)


def forget() -> None:
    """The process groups of a job, with what DeepSpeed keeps of them in its modules."""
    gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()
    if "deepspeed" in sys.modules:
        from deepspeed.comm import comm
        from deepspeed.runtime.zero import parameter_offload, partition_parameters
        from deepspeed.utils import groups

        comm.cdb = None
        partition_parameters.Init.param_id = 0  # ranks compare the numbers of their parameters and modules
        parameter_offload.DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__[0][0] = 0
        for name, value in vars(groups).items():
            if name.startswith("_") and name.isupper() and not callable(value):
                setattr(groups, name, {} if isinstance(value, dict) else None)


if __name__ == "__main__":
    main(sys.argv[1])
