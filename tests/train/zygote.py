"""Forks workers from a process that has imported everything: a life of a run starts in a blink, and can be killed.

Reads JSON lines {"folder", "log", "environment"} and answers with the worker's process id; {"poll": pid} with how it
ended: its exit code, minus the number of the signal, or null while it runs.
"""

import json
import os
import sys
from pathlib import Path

ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # libraries greet on stdout
os.environ["DS_ACCELERATOR"] = "cpu"

import torch  # noqa: E402

import train.loop  # noqa: E402
import train.run  # noqa: E402
import train.zero  # noqa: E402, F401
from train.__main__ import main  # noqa: E402


def child(folder: str, log: str, environment: dict[str, str]) -> None:
    os.setsid()
    os.environ |= environment
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 1
    try:
        code = main(Path(folder))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        if "poll" in job:
            ended, status = os.waitpid(job["poll"], os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if ended else None), file=ANSWERS, flush=True)
        elif pid := os.fork():
            print(pid, file=ANSWERS, flush=True)
        else:
            child(**job)
