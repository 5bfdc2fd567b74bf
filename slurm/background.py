"""A runner of points that outlives the command that started it: what `fulcrum slurm submit slurm=local` leaves behind.

`python -m slurm.background <sweep> <submission>` trains the points of a submission. It holds the submission's lock from
its first moment on (it inherits it), so everybody can see whether it lives, and which process to stop.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from conf.errors import user_errors
from conf.points import Point
from data.records import live_holder, lock_run
from data.version import code_version
from slurm import manifest
from slurm.local import Stop, child_environment, prepare_data, run_points
from slurm.manifest import LOCAL, Submission


def register(sweep: Path, points: Sequence[Point]) -> Submission:
    """Notes that a runner of this machine takes the points."""
    return manifest.begin(sweep, LOCAL, [point.run_id for point in points], code_version())


def start(sweep: Path, points: Sequence[Point]) -> None:
    """Starts the runner, which holds the submission's lock before this returns."""
    submission = register(sweep, points)
    with lock_run(submission.folder) as lock, (submission.folder / "output.log").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "slurm.background", str(sweep), submission.id],
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[lock.fileno()],
            start_new_session=True,
        )
        lock.truncate(0)
        lock.write(f"process {process.pid} on {socket.gethostname()}")


def stop(submission: Submission) -> bool:
    """Asks the runner of a submission to checkpoint its points and end; False where it is gone. ValueError where it
    runs on another machine."""
    holder = live_holder(submission.folder)
    if not holder:
        return False
    _, pid, _, host = holder.split(" ", 3)
    if host != socket.gethostname():
        raise ValueError(f"the points are trained by {holder}: cancel them there.")
    os.kill(int(pid), signal.SIGTERM)
    return True


def main(sweep: Path, name: str) -> int:
    (submission,) = [submission for submission in manifest.read(sweep) if submission.id == name]
    stop = Stop()
    with user_errors():
        points = manifest.points_of(sweep, submission.run_ids)
        prepare_data(points, stop)
        return run_points(points, stop)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
