"""How a user's mistake ends a command: one clear message, no traceback."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def user_errors() -> Iterator[None]:
    """A ValueError, or what the disk refuses, becomes `error: ...` and exit code 1; HYDRA_FULL_ERROR=1 shows where."""
    try:
        yield
    except (ValueError, OSError) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
