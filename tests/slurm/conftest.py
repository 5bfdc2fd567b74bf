"""Slurm clusters for the tests of this folder: two that stay up for the whole session, and any number for one test."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from typing import Any

import pytest

from .cluster import INSTALL, INSTALL_ACCOUNTING, Cluster, missing

NUMBER = count(1)


def up(**settings: Any) -> Cluster:
    """A cluster to start, with node names that no other on this machine has."""
    accounting = settings.get("accounting", False)
    if absent := missing(accounting):
        how = INSTALL_ACCOUNTING if accounting else INSTALL
        # where Slurm is part of the job, a skipped test would hide that it is not there
        refuse = pytest.fail if os.environ.get("FULCRUM_NEEDS_SLURM") else pytest.skip
        refuse(f"no Slurm cluster can run here without: {', '.join(absent)}. As root: {how}")
    return Cluster(prefix=f"t{os.getpid()}-{next(NUMBER)}-", **settings)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes of 4 processors and 4000 MB. There is no sacct, as on many clusters."""
    with up() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def accounted() -> Iterator[Cluster]:
    """The same with sacct."""
    with up(accounting=True) as cluster:
        yield cluster


@pytest.fixture
def new_cluster() -> Iterator[Callable[..., Cluster]]:
    """Settings of `Cluster` -> one that is up until the test ends."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(up(**settings))


@pytest.fixture(autouse=True)
def tidy(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test leaves no jobs and no failed nodes to the next one."""
    yield
    for name in {"cluster", "accounted"} & set(request.fixturenames):
        request.getfixturevalue(name).reset()
