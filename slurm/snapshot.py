"""A copy of the code for queued jobs: what is edited after a submission does not change its runs.

Every file that git would track or already does, of the checkout that Fulcrum runs from, and the user's own ./conf.
Where Fulcrum is installed there is nothing to copy: jobs use the installation.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from data.version import NOTE, ROOT, code_version, is_checkout

LARGEST = 200e6  # bytes of code; more is data that somebody forgot to ignore


def snapshot(into: Path, leave_out: Sequence[Path]) -> Path | None:
    """The folder below `into` with a copy of the code, named by its content; None where Fulcrum is not a checkout.

    `leave_out`: folders of records and data that may lie inside the checkout. ValueError where what is left is large.
    """
    if not is_checkout():
        return None
    apart = [folder.resolve() for folder in leave_out]
    files = {name: ROOT / name for name in _known_to_git(ROOT)}
    own = Path.cwd() / "conf"
    if own.is_dir() and own.resolve() != ROOT / "conf":
        files |= {f"user_conf/{path.relative_to(own)}": path for path in own.rglob("*") if path.is_file()}
    files = {
        name: path
        for name, path in sorted(files.items())
        if path.is_file() and not any(path.resolve().is_relative_to(folder) for folder in apart)
    }
    sizes = {name: path.stat().st_size for name, path in files.items()}
    if sum(sizes.values()) > LARGEST:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:5]
        raise ValueError(
            f"the code in {ROOT} is {sum(sizes.values()) / 1e6:.0f} MB, more than a copy for the jobs may be. Largest: "
            f"{', '.join(f'{name} ({sizes[name] / 1e6:.0f} MB)' for name in largest)}. Name data in .gitignore."
        )
    digest = hashlib.sha256(code_version().encode())
    for name, path in files.items():
        digest.update(f"{name}\0{sizes[name]}\0".encode())
        digest.update(path.read_bytes())
    folder = into / digest.hexdigest()[:12]
    if not folder.exists():
        unfinished = into / f".{folder.name}.{os.getpid()}"
        for name, path in files.items():
            (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, unfinished / name)
        (unfinished / NOTE).write_text(code_version() + "\n")
        unfinished.rename(folder)
    return folder


def _known_to_git(root: Path) -> list[str]:
    """Files that are tracked, or neither tracked nor ignored."""
    command = ["git", "-C", str(root), "ls-files", "-coz", "--exclude-standard"]
    try:
        listed = subprocess.run(command, text=True, capture_output=True)
    except FileNotFoundError:
        raise ValueError("git is not on the path: it lists the code that is copied for the jobs.") from None
    if listed.returncode:
        raise ValueError(f"{root} is a git checkout and git cannot list it: {listed.stderr.strip()}")
    return [name for name in listed.stdout.split("\0") if name]
