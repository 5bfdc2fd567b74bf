"""Runs of two ranks that are stopped, killed and broken: they end in bounded time, and go on as if nothing was."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from train.checkpoint import newest, read_weights

pytestmark = pytest.mark.usefixtures("hydra_conf")

RANKS = 2
TIMEOUT = 12  # seconds a rank waits for one that never came; torch tries to connect twice
BOUND = 2 * TIMEOUT + 20.0  # seconds after which a rank that lost its peer must be gone
RUN = [
    "ramp=seesaw",
    "ramp.alpha=1.5",
    "ramp.batch_size=4",
    "launch.micro_batch_size=1",
    "launch.devices=2",
    f"launch.collective_timeout={TIMEOUT}",
    "launch.log_every_tokens=1",
    "averages=standard",
]


class Ranks:
    """Lives of two ranks each, forked from a process that has imported everything."""

    def __init__(self) -> None:
        self.zygote = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"},
        )

    def ask(self, job):
        self.zygote.stdin.write(json.dumps(job) + "\n")
        return json.loads(self.zygote.stdout.readline())

    def start(self, point) -> list[int]:
        point.folder.mkdir(parents=True, exist_ok=True)
        (point.folder / "config.yaml").write_text(yaml.safe_dump(point.config))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        common = {"WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        jobs = [
            {
                "folder": str(point.folder),
                "log": str(point.folder / "output.log"),
                "environment": {k: str(v) for k, v in {**common, "RANK": rank, "LOCAL_RANK": rank}.items()},
            }
            for rank in range(RANKS)
        ]
        return [self.ask(job) for job in jobs]

    def wait(self, *pids) -> list[int]:
        """How these ranks ended; kills them, and fails, where one is still there BOUND seconds after another ended."""
        codes: dict[int, int] = {}
        ended_at = None
        while len(codes) < len(pids):
            for pid in set(pids) - set(codes):
                code = self.ask({"poll": pid})
                if code is not None:
                    codes[pid], ended_at = code, ended_at or time.monotonic()
            if ended_at and time.monotonic() - ended_at > BOUND:
                for pid in pids:
                    kill(pid)
                raise AssertionError("a rank hung after another had ended")
            time.sleep(0.02)
        return [codes[pid] for pid in pids]

    def close(self) -> None:
        self.zygote.stdin.close()
        self.zygote.wait(timeout=30)


def kill(pid, number=signal.SIGKILL):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def ranks():
    ranks = Ranks()
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def kept():
    return []


@pytest.fixture
def undisturbed(ranks, make, kept, tmp_path_factory):
    """The run under DDP that nobody stops, trained once for all tests."""
    if not kept:
        point = make("undisturbed", "strategy=ddp", f"launch.runs={tmp_path_factory.mktemp('undisturbed')}")
        assert ranks.wait(*ranks.start(point)) == [0, 0]
        kept.append(point)
    return kept[0]


def summary(point):
    return json.loads((point.folder / "summary.json").read_text())


def log(point):
    return (point.folder / "output.log").read_text()


def same_run(point, expected, logged):
    assert summary(point)["status"] == "completed", log(point)
    assert logged(point.folder) == logged(expected.folder)
    for average in (None, "half_life", "growing", "tail"):
        weights, theirs = (read_weights(newest(p.folder / "checkpoints"), average) for p in (point, expected))
        torch.testing.assert_close(weights, theirs, rtol=0, atol=0)


def kill_until_it_ends(ranks, point, kills, draw, begins):
    """Kills one rank or both at random moments of as many lives, or until one was faster; then lets the run end.

    `begins`: seconds to the first step of a life. Gives the number of kills.
    """
    done = 0
    while done < kills:
        pids = ranks.start(point)
        time.sleep(draw.uniform(0, 1.5 * begins))
        victims = draw.choice([pids[:1], pids[1:], pids])
        hit = [kill(pid) for pid in victims]
        codes = ranks.wait(*pids)
        if codes == [0, 0]:
            return done
        done += any(hit) and -signal.SIGKILL in codes
    assert ranks.wait(*ranks.start(point)) == [0, 0], log(point)[-3000:]
    return done


@pytest.mark.parametrize(
    ("strategy", "kills"),
    [
        ("fsdp", 4),
        pytest.param("fsdp", 50, marks=[pytest.mark.long, pytest.mark.timeout(1800)]),
        pytest.param("ddp", 50, marks=[pytest.mark.long, pytest.mark.timeout(1800)]),
        pytest.param("zero2", 50, marks=[pytest.mark.long, pytest.mark.timeout(1800)]),
        pytest.param("zero3", 50, marks=[pytest.mark.long, pytest.mark.timeout(1800)]),
    ],
)
def test_killed_at_random_moments_it_is_the_undisturbed_run(ranks, make, logged, strategy, kills):
    # a kill before the ranks have met costs the other twice the timeout
    budget = [f"total_tokens={6400 * (1 + kills // 5)}", "launch.checkpoint.every_tokens=640"]
    budget += ["launch.collective_timeout=6"]
    undisturbed, killed = (make(name, f"strategy={strategy}", *budget) for name in ("undisturbed", "killed"))
    started = time.monotonic()
    pids = ranks.start(undisturbed)
    wait_for_rows(undisturbed, 1)
    begins = time.monotonic() - started
    assert ranks.wait(*pids) == [0, 0]
    done, draw = 0, random.Random(kills)
    while done < kills:  # a run may end before all kills are spent: then another begins
        done += kill_until_it_ends(ranks, killed, kills - done, draw, begins)
        same_run(killed, undisturbed, logged)
        shutil.rmtree(killed.folder)
    assert done == kills


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_one_rank_makes_all_checkpoint_and_end(ranks, make, logged, undisturbed, number):
    stopped = make("stopped", "strategy=ddp")
    pids = ranks.start(stopped)
    wait_for_rows(stopped, 3)
    assert kill(pids[1], number)
    assert ranks.wait(*pids) == [85, 0]  # the first rank speaks for all, and ends last
    assert summary(stopped)["status"] == "preempted" and summary(stopped)["stop_reason"] == "a signal to another rank"
    assert f"{summary(stopped)['tokens']:012d}" == newest(stopped.folder / "checkpoints").name
    assert ranks.wait(*ranks.start(stopped)) == [0, 0]
    same_run(stopped, undisturbed, logged)


def wait_for_rows(point, count):
    path = point.folder / "metrics.jsonl"
    for _ in range(600):
        if path.exists() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.05)
    raise AssertionError(log(point))


def test_a_second_signal_ends_a_rank_at_once_and_harms_nothing(ranks, make, logged, undisturbed):
    stopped = make("stopped", "strategy=ddp")
    pids = ranks.start(stopped)
    wait_for_rows(stopped, 3)
    os.kill(pids[1], signal.SIGSTOP)  # it hangs: the first rank cannot finish its step
    assert kill(pids[0], signal.SIGTERM)
    time.sleep(1.2)
    sent = time.monotonic()
    assert kill(pids[0], signal.SIGTERM)
    assert ranks.wait(pids[0]) == [85] and time.monotonic() - sent < 2
    os.kill(pids[1], signal.SIGCONT)
    assert ranks.wait(pids[1]) != [0]
    assert ranks.wait(*ranks.start(stopped)) == [0, 0]
    same_run(stopped, undisturbed, logged)


@pytest.mark.parametrize("context", [[], ["context.ring=2"]], ids=["ddp", "ring"])
def test_a_rank_that_hangs_does_not_hold_the_others_for_ever(ranks, make, context):
    point = make("hanging", "strategy=ddp", "launch.collective_timeout=3", *context)
    pids = ranks.start(point)
    wait_for_rows(point, 3)
    os.kill(pids[1], signal.SIGSTOP)
    started = time.monotonic()
    try:
        assert ranks.wait(pids[0]) == [1]
        assert time.monotonic() - started < BOUND
    finally:
        kill(pids[1])
        ranks.wait(pids[1])
    assert summary(point)["status"] == "failed" and "Timed out" in summary(point)["stop_reason"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero1", "zero3"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_loss_that_is_not_finite_stops_all_ranks_before_the_update(ranks, make, strategy, precision):
    point = make(
        "diverging",
        f"strategy={strategy}",
        f"precision={precision}",
        "peak_lr=1e30",
        "optimizer=sgd",
        "clip_norm=0",
        "optimizer.weight_decay=0",
    )
    assert ranks.wait(*ranks.start(point)) == [1, 0]
    end = summary(point)
    assert end["status"] == "diverged" and end["stop_reason"] == "non-finite loss or gradient"
    rows = [json.loads(line) for line in (point.folder / "metrics.jsonl").read_text().splitlines()]
    assert end["steps"] == rows[-1]["step"] and end["tokens"] == rows[-1]["tokens"]
    first = end["tokens"] // 32
    assert end["samples"] == [first, first + point.plan.at(end["tokens"]).batch_size]
    for rank, (start, stop) in zip(end["ranks"] or [], end["samples_of_ranks"], strict=True):
        assert first <= start <= stop <= end["samples"][1] and rank in (0, 1)
