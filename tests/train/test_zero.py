"""What DeepSpeed compiles when a process starts must not hold up the processes after one that was killed."""

import fcntl
import os
import signal
import subprocess
import sys
import time

os.environ.setdefault("DS_ACCELERATOR", "cpu")

from train.zero import KernelLock

HOLDER = """
import os, sys, time
os.environ["DS_ACCELERATOR"] = "cpu"
from train.zero import KernelLock
assert KernelLock(sys.argv[1]).try_acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_the_lock_of_a_killed_process_is_free_and_that_of_a_live_one_is_not(tmp_path):
    from torch.utils import cpp_extension

    assert cpp_extension.FileBaton is KernelLock
    path = str(tmp_path / "lock")
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, text=True)
    while holder.stdout.readline() != "held\n":
        assert holder.poll() is None
    assert not KernelLock(path).try_acquire()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert os.path.exists(path)  # where torch's own lock would wait for ever
    started = time.monotonic()
    KernelLock(path).wait()
    lock = KernelLock(path)
    assert lock.try_acquire() and time.monotonic() - started < 5
    lock.release()
    with open(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert not KernelLock(path).try_acquire()
