"""Real text on disk, a cache of prepared data, and points composed as `fulcrum train` composes them."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_module
from hypothesis import settings

# Machines that run this are small and shared: a slow example is not a failure. Where CI is set, examples are always the
# same: a change is not refused for what an older test has just found.
settings.register_profile("fulcrum", deadline=None, max_examples=40, derandomize="CI" in os.environ)
settings.load_profile("fulcrum")

TINY = [
    "model=tiny",
    "model.d_model=16",
    "model.n_layers=2",
    "model.n_heads=2",
    "model.d_ff=32",
    "sequence_length=32",
    "ramp.batch_size=6",
    "total_tokens=6400",
    "peak_lr=1e-2",
    "eval.tokens=1024",
    "data=files",
    "launch.accelerator=cpu",
    "launch.threads=1",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that wait for processes come first: the short ones even out two workers in the end."""
    items.sort(key=lambda item: item.path.parent.name not in ("slurm", "train"))


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 60 documents of pseudo-random words, about 60 kB."""
    folder = tmp_path_factory.mktemp("texts")
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 7))) for _ in range(80)]
    with (folder / "docs.jsonl").open("w") as file:
        for _ in range(60):
            file.write(json.dumps({"text": " ".join(draw.choices(words, k=200))}) + "\n")
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def tiny(texts: Path, cache: Path, tmp_path: Path) -> list[str]:
    """Overrides of a run that trains in well under a second."""
    return [
        *TINY,
        f"data.sources.files.paths=[{texts}/*.jsonl]",
        "data.heldout=0.1",
        f"launch.cache={cache}",
        f"launch.runs={tmp_path}/runs",
    ]


@pytest.fixture
def hydra_conf() -> Iterator[None]:
    with initialize_config_module("conf", version_base="1.3"):
        yield


@pytest.fixture
def logged() -> Callable[[Path], list[dict[str, Any]]]:
    """A run's folder -> the rows of metrics.jsonl, without what differs between two runs of the same numbers."""

    def logged(folder: Path) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        measured = {"tokens_per_second", "mfu", "communication", "peak_memory"}
        return [{k: v for k, v in row.items() if k not in measured and not k.startswith("seconds")} for row in rows]

    return logged


@pytest.fixture
def fulcrum(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the console command in `tmp_path`, as a user would."""

    def call(*arguments: str, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fulcrum", *arguments]
        environment = os.environ | {"PYTHONSAFEPATH": "1", "COLUMNS": "200"}
        return subprocess.run(command, cwd=cwd, env=environment, text=True, capture_output=True, timeout=280)

    return call
