"""Points trained in this process, on one thread."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

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
        return train(run, {"threads": 1}, lambda: steps is not None and next(calls) >= steps - 1), run

    return life
