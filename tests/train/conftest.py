"""Points trained in this process, on one thread, or as any number of ranks in processes that stay."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

import pytest
import torch

from conf.points import expand
from data.prepare import prepare
from train.loop import train
from train.run import build_run


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The same bits need the same thread count, and small models are slow on cores that others use."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def life(one_thread: None) -> Callable[..., Any]:
    """Trains at most `steps` steps of a point; returns the status and the run."""

    def life(point, steps=None):
        calls = iter(range(10**6))
        run = build_run(point.config, point.folder)

        def stop() -> str | None:
            return "SIGTERM" if steps is not None and next(calls) >= steps - 1 else None

        return train(run, {"threads": 1}, stop), run

    return life


@pytest.fixture(scope="session")
def run_ranks() -> Callable[[str, Path, int], list[str]]:
    """Runs a program with a folder as its argument, as so many ranks of one world; returns what each said of errors."""

    def run_ranks(program: str, folder: Path, ranks: int) -> list[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        common |= {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
        processes = [
            subprocess.Popen(
                [sys.executable, program, folder],
                env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(ranks)
        ]
        try:
            errors = [process.communicate(timeout=120)[1] for process in processes]
        finally:
            for process in processes:  # one that waits for a rank that never comes
                process.kill()
        assert [process.returncode for process in processes] == [0] * ranks, errors
        return errors

    return run_ranks


@pytest.fixture
def weights() -> Callable[..., Any]:
    """The weights that a run in this process trained, flat, by parameter."""
    return lambda run: {p.name: p.weights for fragments in run.engine.groups() for p in fragments}


@pytest.fixture
def averaged() -> Callable[..., Any]:
    """The averages of a run in this process, flat, by name and parameter."""

    def averaged(run):
        pieces = [piece for fragments in run.engine.groups() for piece in fragments]
        names = run.averages.of(pieces[0])
        return {name: {piece.name: run.averages.of(piece)[name] for piece in pieces} for name in names}

    return averaged


@pytest.fixture
def make(tiny, cache, tmp_path, hydra_conf, request) -> Callable[..., Any]:
    """A name for its folder, and overrides on top of the module's RUN -> a point with prepared data."""

    def make(name: str = "run", *overrides: str):
        run = getattr(request.module, "RUN", [])
        (point,) = expand([[*tiny, *run, f"launch.runs={tmp_path}/{name}", *overrides]])
        prepare(point.config["data"], point.config["tokenizer"], cache, processes=1)
        point.folder.mkdir(parents=True, exist_ok=True)
        return point

    return make


def slow(*values: Any) -> Any:
    return pytest.param(values, marks=pytest.mark.long)


@pytest.fixture(
    params=[
        ("ddp", 2),
        ("fsdp", 2),
        ("zero1", 2),
        ("zero3", 2),
        slow("single", 1),
        slow("zero2", 2),
        slow("zero3_offload_cpu", 2),
    ],
    ids=lambda layout: f"{layout[0]}-{layout[1]}",
)
def layout(request: pytest.FixtureRequest) -> tuple[str, int]:
    """Strategy and world size."""
    return request.param


class Pool:
    """Worker processes, started when first needed; rank r of a job is worker r."""

    def __init__(self, folder: Path) -> None:
        self.listener = Listener(str(folder / "pool"))
        self.workers: list[tuple[subprocess.Popen, Connection]] = []

    def train(self, point, world_size: int = 1, steps: int | None = None) -> str:
        """Trains at most `steps` steps of a point on `world_size` ranks; returns the status, the same on all."""
        while len(self.workers) < world_size:
            command = [sys.executable, Path(__file__).with_name("worker.py"), self.listener.address]
            process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
            self.workers.append((process, self.listener.accept()))
        point.folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        connections = [connection for _, connection in self.workers[:world_size]]
        for rank, connection in enumerate(connections):
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            connection.send((point.config, str(point.folder), environment, steps))
        answers = [connection.recv() for connection in connections]
        errors = [text for kind, text in answers if kind == "error"]
        assert not errors, "\n".join(errors)
        (status,) = {text for _, text in answers}
        return status

    def close(self) -> None:
        for process, connection in self.workers:
            connection.send(None)
            process.wait(timeout=30)
        self.listener.close()


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    pool = Pool(tmp_path_factory.mktemp("pool"))
    yield pool
    pool.close()
