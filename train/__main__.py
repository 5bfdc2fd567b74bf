"""`python -m train <run folder>`: the worker that trains one point, on one device.

The folder holds config.yaml. Processes of one point find each other by RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and
MASTER_PORT. Exit codes: 0 completed, 85 asked to stop (resumable), 75 another process writes this run, 1 anything else;
summary.json says what.
"""

import contextlib
import importlib.metadata
import os
import platform
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import yaml

from data.records import (
    COMPLETED,
    FAILED,
    LOCKED_EXIT,
    PREEMPTED,
    PREEMPTED_EXIT,
    end_life,
    end_with_parent,
    lock_run,
    read_lines,
    write_json,
    write_once,
)


def main(folder: Path) -> int:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda *_: stop.set())
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
            (folder / "summary.json").unlink(missing_ok=True)  # how an earlier life ended says nothing of this one
        try:
            status = train_point(config, folder, stop)
        except Exception as error:
            traceback.print_exc()
            print(f"error: {error}", file=sys.stderr)
            if is_first:
                reason = f"{type(error).__name__}: {error}"
                end_life(folder, FAILED)
                write_json(folder / "summary.json", {"status": FAILED, "stop_reason": reason})
            return 1
    return {COMPLETED: 0, PREEMPTED: PREEMPTED_EXIT}.get(status, 1)


def train_point(config: dict[str, Any], folder: Path, stop: threading.Event) -> str:
    import torch

    from train.loop import train
    from train.run import build_run

    threads = int(os.environ["OMP_NUM_THREADS"]) if "OMP_NUM_THREADS" in os.environ else torch.get_num_threads()
    torch.set_num_threads(threads)
    run = build_run(config, folder)
    life = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "world_size": run.fabric.world_size,
        "strategy": config["launch"]["strategy"]["_target_"],
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
    return train(run, life, stop.is_set)


def warn_of_changes(folder: Path, life: dict[str, Any]) -> None:
    """Says what differs from the last life: the same bits need the same layout, thread count and libraries."""
    lives = read_lines(folder / "lives.jsonl")
    for key in ("world_size", "strategy", "threads", "device", "torch"):
        if lives and lives[-1].get(key) != life[key]:
            print(
                f"warning: {key} was {lives[-1].get(key)} in the run's last life and is {life[key]} now: "
                "the samples and the plan stay the same, the last bits of the losses may not.",
                file=sys.stderr,
            )


def code_version() -> str:
    """The installed version, with the commit where this is a checkout."""
    version = importlib.metadata.version("fulcrum")
    checkout = Path(__file__).resolve().parents[1]
    if not (checkout / ".git").exists():  # installed, perhaps inside somebody else's checkout
        return version
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError):
        described = subprocess.run(command, text=True, capture_output=True)
        if described.returncode == 0:
            return f"{version}+{described.stdout.strip()}"
    return version


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "config.yaml").exists():
        sys.exit("usage: python -m train <run folder>; the folder holds config.yaml (`fulcrum train` writes it).")
    sys.exit(main(Path(sys.argv[1]).resolve()))
