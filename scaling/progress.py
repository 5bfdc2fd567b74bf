"""A progress bar for work that turns out to be long."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
_PATIENCE = 2.0  # seconds before a bar appears


def track(work: Sequence[T], name: str) -> Iterator[T]:
    """The items of `work`; on a terminal a bar called `name` appears once they have taken two seconds."""
    if not name or not sys.stderr.isatty():
        yield from work
        return
    from rich.console import Console
    from rich.progress import Progress

    began, bar, task = time.monotonic(), Progress(console=Console(stderr=True), transient=True), None
    try:
        for done, item in enumerate(work):
            if task is None and time.monotonic() - began > _PATIENCE:
                bar.start()
                task = bar.add_task(name, total=len(work))
            if task is not None:
                bar.update(task, completed=done)
            yield item
    finally:
        bar.stop()
