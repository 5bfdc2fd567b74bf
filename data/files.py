"""Files that outlive crashes: JSON, JSON lines and YAML, written whole and read with errors that name them."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def write_atomic(path: Path, content: str | bytes | memoryview) -> None:
    """Replaces `path` with `content` so that a reader or a crash sees the old or the new content, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_atomic(path, json.dumps(value, indent=1, allow_nan=True) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; {} when there is no such file. A damaged file is a ValueError that names it."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}): restore it, or remove the folder and run again."
        ) from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file. A torn last line (a write that was cut off) is ignored; any other is an error."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    lines.pop()  # what follows the last newline: nothing, or a line that was cut off
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise ValueError(f"{path}, line {number}: not valid JSON; the file is damaged in the middle.") from None
    return rows


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Appends a row to a JSON-lines file, on disk when this returns; what a kill left of a line before it goes."""
    with path.open("a+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if size and file.read() != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(row, allow_nan=True).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return yaml.load(path.read_text(), loader) or {} if path.exists() else {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML ({' '.join(str(error).split())}): correct or restore it.") from None


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys joined by dots, and the values that are no mappings."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
