"""`python -m train <run folder>`: the worker that trains one point, on one device.

The folder holds config.yaml. Processes of one point find each other by RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE,
MASTER_ADDR and MASTER_PORT, as the runner and torchrun set them; under srun they follow from Slurm's own variables.

SIGTERM, SIGINT and SIGUSR1 finish the step, checkpoint and end; a second one ends at once. Exit codes: 0 completed, 85
asked to stop (resumable), 75 another process writes this run, 1 anything else; summary.json says what.
"""

import atexit
import contextlib
import importlib.util
import math
import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from data.files import read_lines
from data.records import (
    COMPLETED,
    FAILED,
    LOCKED_EXIT,
    PREEMPTED,
    PREEMPTED_EXIT,
    end_life,
    end_with_parent,
    lock_run,
    write_once,
    write_summary,
)
from data.version import code_version


def main(folder: Path) -> int:
    os.environ |= slurm_environment(os.environ)
    stop = stop_on_signals()
    end_with_parent()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    is_first = int(os.environ.get("RANK", 0)) == 0
    with contextlib.ExitStack() as stack:
        if is_first:
            try:
                stack.enter_context(lock_run(folder))
            except ValueError as error:
                print(f"error: {error}", file=sys.stderr)
                return LOCKED_EXIT
            write_summary(folder, {})  # how an earlier life ended says nothing of this one
        try:
            status = train_point(config, folder, stop)
        except Exception as error:
            traceback.print_exc()
            print(f"error: {error}", file=sys.stderr)
            if is_first:
                reason = f"{type(error).__name__}: {error}"
                end_life(folder, FAILED)
                write_summary(folder, {"status": FAILED, "stop_reason": reason})
            return 1
    if not is_first:  # the first ends last, and srun would kill it when another ends badly
        return 0
    return {COMPLETED: 0, PREEMPTED: PREEMPTED_EXIT}.get(status, 1)


def stop_on_signals() -> Callable[[], str | None]:
    """The name of the first SIGTERM, SIGINT or SIGUSR1, once it came; the second ends the process at once, as a kill
    would.

    A batch system may send one signal twice, to the job and to its steps: what comes within a second is one.
    """
    heard: list[str] = []
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for number in numbers:
        signal.signal(number, lambda *_: None)  # heard by the thread, also while a collective holds the main one up

    def listen() -> None:
        first_at = math.inf
        while True:
            number = os.read(reader, 1)[0]
            if number not in numbers:
                continue
            if time.monotonic() - first_at > 1:
                os._exit(PREEMPTED_EXIT)
            first_at = min(first_at, time.monotonic())
            heard.append(signal.Signals(number).name)

    threading.Thread(target=listen, daemon=True).start()
    return lambda: heard[0] if heard else None


def slurm_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What srun's variables say of the processes of a point; {} where they are known already, or srun is not there.

    Tasks of a node are counted as "2(x3),1": two on each of three nodes, one on the fourth.
    """
    if "RANK" in environment or "SLURM_STEP_TASKS_PER_NODE" not in environment:
        return {}
    counts: list[int] = []
    for part in environment["SLURM_STEP_TASKS_PER_NODE"].split(","):
        tasks, _, times = part.partition("(x")
        counts += [int(tasks)] * int(times.rstrip(")") or 1)
    return {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
        "LOCAL_WORLD_SIZE": str(counts[int(environment["SLURM_NODEID"])]),
        "MASTER_ADDR": environment.get("MASTER_ADDR") or environment["SLURM_LAUNCH_NODE_IPADDR"],
        "MASTER_PORT": environment.get("MASTER_PORT") or str(20000 + int(environment["SLURM_JOB_ID"]) % 10000),
    }


def train_point(config: dict[str, Any], folder: Path, stop: Callable[[], str | None]) -> str:
    import torch

    import_fabric()
    from train.context_parallel.placement import Context
    from train.loop import train
    from train.run import build_run

    threads = int(os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads())))  # Fabric would set its own
    torch.set_num_threads(threads)
    run = build_run(config, folder)
    life = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "world_size": run.fabric.world_size,
        "strategy": run.strategy,
        "micro_batch_size": None if run.pool else run.micro_batch_size,
        "activation_checkpointing": config["launch"]["activation_checkpointing"],
        "compile": config["launch"]["compile"],
        "context": Context.of(config["context"]).name,
        "threads": threads,
        "device": str(run.fabric.device),
        "host": platform.node(),
        "pid": os.getpid(),
        "job_id": os.environ.get("SLURM_JOB_ID"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fulcrum": code_version(),
    }
    if run.fabric.is_global_zero:
        created = {"created": life["started"], "code_version": life["fulcrum"]}
        write_once(folder, run.identity | created)
        warn_of_changes(folder, life)
    return train(run, life, stop)


def import_fabric() -> None:
    """Imports Lightning's Fabric alone. All of Lightning would bring its trainer, and torchmetrics with scipy.signal
    and transformers, only to ask for a version: a third of the start of a worker."""
    spec = importlib.util.find_spec("lightning")
    assert spec
    sys.modules["lightning"] = importlib.util.module_from_spec(spec)  # a package that has not run: its parts are found
    sys.modules["torchmetrics"] = None  # type: ignore[assignment] # not installed, while Fabric asks
    importlib.import_module("lightning.fabric")
    del sys.modules["torchmetrics"]


def warn_of_changes(folder: Path, life: dict[str, Any]) -> None:
    """Says what differs from the last life: the same bits need the same layout, thread count and libraries."""
    lives = read_lines(folder / "lives.jsonl")
    layout = ("world_size", "strategy", "context", "micro_batch_size", "activation_checkpointing", "compile")
    for key in (*layout, "threads", "device", "torch"):
        if lives and lives[-1].get(key, life[key]) != life[key]:
            print(
                f"warning: {key} was {lives[-1].get(key)} in the run's last life and is {life[key]} now: "
                "the samples and the plan stay the same, the last bits of the losses may not.",
                file=sys.stderr,
            )


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "config.yaml").exists():
        sys.exit("usage: python -m train <run folder>; the folder holds config.yaml (`fulcrum train` writes it).")
    code = 1
    try:
        code = main(Path(sys.argv[1]).resolve())
    except BaseException:
        traceback.print_exc()
    if code in (0, PREEMPTED_EXIT):
        atexit._run_exitfuncs()  # loggers end here
    sys.stdout.flush()
    sys.stderr.flush()
    # no finalisation: a checkpoint's thread may wait for ranks that are gone, and torch's own threads can abort in it
    os._exit(code)
