"""Which code this is: the installed version, and the commit where it runs from a checkout or from a copy of one."""

import contextlib
import importlib.metadata
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTE = ".fulcrum-version"
"""file in which a copy of the code says of which version it is"""


def is_checkout() -> bool:
    """Whether the code lies in a git checkout of its own; not when installed, perhaps inside somebody else's."""
    return (ROOT / ".git").exists()


@cache
def code_version() -> str:
    """As 0.1.0+1a2b3c4-dirty: of the code that this process has loaded, so asked once."""
    if (ROOT / NOTE).exists():
        return (ROOT / NOTE).read_text().strip()
    version = importlib.metadata.version("fulcrum")
    if not is_checkout():
        return version
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError):
        described = subprocess.run(command, text=True, capture_output=True)
        if described.returncode == 0:
            return f"{version}+{described.stdout.strip()}"
    return version
