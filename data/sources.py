"""Text sources: where documents come from.

A source yields its documents as strings in a fixed order. `data.prepare` splits, tokenizes and stores them, so
sources know nothing of tokens. Their errors begin with the offending key; `data.prepare` puts the source's name
before it. Constructors check what needs no disk: a training job opens prepared shards where raw text may be gone.
"""

import glob
import io
import json
import lzma
import os
import sys
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

FORMATS = (".txt", ".jsonl", ".parquet")
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
LARGEST_DOCUMENT = 1 << 28  # bytes of a .txt file, which is one document and held in memory whole


class Source(Protocol):
    """What `data.prepare` needs of a source; any class with these three methods can be a `_target_`."""

    def documents(self) -> Iterator[str]:
        """The documents, always in the same order. Raises ValueError for unreadable content."""

    def signature(self) -> list[Any]:
        """What the raw content is now, cheaply (sizes and times, not text); a change means: prepare again."""

    def identity(self) -> dict[str, Any]:
        """The resolved configuration as JSON; it names the folder of the prepared shards."""


class Stdlib:
    """The source code of this Python's standard library: about 11 MB, there on every machine.

    Tests and installed packages are left out, and so is what the build wrote about this very machine
    (`config-*`, `_sysconfigdata*`): the text depends on the Python release alone.
    """

    LEFT_OUT = ("test", "tests", "idlelib", "site-packages", "dist-packages")

    def identity(self) -> dict[str, Any]:
        return {"kind": "stdlib", "python": sys.version.split()[0]}

    def signature(self) -> list[Any]:
        root = Path(sysconfig.get_path("stdlib"))
        return [[name, *_stat(root / name)] for name in self._names(root)]

    def documents(self) -> Iterator[str]:
        root = Path(sysconfig.get_path("stdlib"))
        for name in self._names(root):
            yield (root / name).read_bytes().decode("utf-8", "replace")

    def _names(self, root: Path) -> list[str]:
        names = []
        for folder, folders, files in os.walk(root):
            folders[:] = [name for name in folders if name not in self.LEFT_OUT and not name.startswith("config-")]
            names += [
                (Path(folder) / name).relative_to(root).as_posix()
                for name in files
                if name.endswith(".py") and not name.startswith("_sysconfigdata")
            ]
        if not names:
            raise ValueError(f"no Python source lies in {root}: this Python was installed without it. Use data=files")
        return sorted(names)


class Installed:
    """Text files of the packages that are installed beside this Python, each one a document: torch's headers, say.

    `patterns`: one glob or a list of them, relative to the folder of installed packages; `**` descends. What they match
    changes with the versions of the packages, and with it the fingerprint of the data.
    """

    def __init__(self, patterns: str | list[str]):
        self.patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        if not self.patterns or not all(isinstance(pattern, str) and pattern for pattern in self.patterns):
            raise ValueError(f"patterns={patterns!r} names no file. Give one glob or a list, such as 'torch/**/*.h'")

    def identity(self) -> dict[str, Any]:
        return {"kind": "installed", "patterns": self.patterns}

    def signature(self) -> list[Any]:
        root = Path(sysconfig.get_path("platlib"))
        return [[name, *_stat(root / name)] for name in self._names(root)]

    def documents(self) -> Iterator[str]:
        root = Path(sysconfig.get_path("platlib"))
        for name in self._names(root):
            yield (root / name).read_bytes().decode("utf-8", "replace")

    def _names(self, root: Path) -> list[str]:
        found: set[str] = set()
        for pattern in self.patterns:
            matches = [name for name in glob.glob(pattern, root_dir=root, recursive=True) if (root / name).is_file()]
            if not matches:
                raise ValueError(f"patterns={pattern!r} matches no file in {root}. Correct the glob, or install it")
            found.update(matches)
        return sorted(found)


class Files:
    """Local text files: .txt (a file is a document), .jsonl (a line is a document), .parquet (a row is a document).

    `paths`: one glob or a list of them; `**` descends. .txt and .jsonl may be compressed (.gz, .bz2, .xz, .zst).
    `text`: the field or column that holds the text. Rows whose text is null are skipped.
    """

    def __init__(self, paths: str | list[str], text: str = "text"):
        patterns = [paths] if isinstance(paths, str) else list(paths)
        if not patterns or not all(isinstance(pattern, str) and pattern for pattern in patterns):
            raise ValueError(f"paths={paths!r} names no file. Give one glob or a list of globs, such as 'corpus/*.txt'")
        self.patterns = [os.path.abspath(os.path.expanduser(pattern)) for pattern in patterns]
        self.text = text

    def identity(self) -> dict[str, Any]:
        return {"kind": "files", "paths": self.patterns, "text": self.text}

    def signature(self) -> list[Any]:
        return [[str(path), *_stat(path)] for path in self.files()]

    def files(self) -> list[Path]:
        """The matching files, sorted, each once."""
        found: set[str] = set()
        for pattern in self.patterns:
            matches = [name for name in glob.glob(pattern, recursive=True) if os.path.isfile(name)]
            if not matches:
                raise ValueError(f"paths={pattern!r} matches no file. Correct the path or the glob")
            found.update(matches)
        files = [Path(name) for name in sorted(found)]
        for path in files:
            _format(path)
        return files

    def documents(self) -> Iterator[str]:
        for path in self.files():
            try:
                yield from self._documents_of(path)
            except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                raise ValueError(f"paths: {path} cannot be read: {error}") from error

    def _documents_of(self, path: Path) -> Iterator[str]:
        kind = _format(path)
        if kind == ".parquet":
            yield from self._texts(path, "row", _parquet_rows(path, self.text))
        else:
            with _open(path) as stream:
                if kind == ".txt":
                    text = stream.read(LARGEST_DOCUMENT + 1)
                    if len(text) > LARGEST_DOCUMENT:
                        raise ValueError(
                            f"paths: {path} is one document of more than {LARGEST_DOCUMENT >> 20} MiB, and a document "
                            "is held in memory whole. Cut it into .jsonl, a document a line"
                        )
                    yield text.decode("utf-8", "replace")
                else:
                    yield from self._texts(path, "line", _json_rows(path, stream))

    def _texts(self, path: Path, unit: str, rows: Iterable[tuple[int, Any]]) -> Iterator[str]:
        for number, row in rows:
            if not isinstance(row, dict) or self.text not in row:
                there = ", ".join(sorted(row)) if isinstance(row, dict) else f"no fields, it is a {type(row).__name__}"
                raise ValueError(f"text={self.text!r} is not in {path}, {unit} {number}. What is there: {there}")
            yield from _text(row[self.text], self.text, f"{path}, {unit} {number}")


class Hub:
    """A dataset of the Hugging Face hub, or a local folder in its layout, streamed with `datasets`.

    `documents`: read at most so many rows (null: all).
    """

    def __init__(
        self, dataset: str, config: str | None = None, split: str = "train", text: str = "text",
        documents: int | None = None,
    ):  # fmt: skip
        if not dataset or not isinstance(dataset, str):
            raise ValueError(f"dataset={dataset!r} names no dataset. Give a name such as 'allenai/c4', or a folder")
        if documents is not None and (not isinstance(documents, int) or documents < 1):
            raise ValueError(f"documents={documents!r} is not a number of documents. Use a positive integer, or null")
        self.dataset, self.config, self.split, self.text, self.limit = dataset, config, split, text, documents

    def identity(self) -> dict[str, Any]:
        dataset = os.path.abspath(self.dataset) if os.path.isdir(self.dataset) else self.dataset
        return {"kind": "hub", "dataset": dataset, "config": self.config, "split": self.split, "text": self.text,
                "documents": self.limit}  # fmt: skip

    def signature(self) -> list[Any]:
        # The content behind a name is not known without downloading it: the configuration stands for it.
        return [self.identity()]

    def documents(self) -> Iterator[str]:
        import datasets

        try:
            rows = datasets.load_dataset(self.dataset, name=self.config, split=self.split, streaming=True)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"dataset={self.dataset!r} (config {self.config!r}, split {self.split!r}) cannot be opened: {error}"
            ) from error
        columns = rows.column_names
        if columns is not None:
            self._check(columns)
            rows = rows.select_columns([self.text])
        number = 0
        try:
            for number, row in enumerate(islice(rows, self.limit), 1):
                self._check(row)
                yield from _text(row[self.text], self.text, f"{self.dataset}, row {number}")
        except OSError as error:  # the network's and the disk's; the same command goes on where it was
            raise ValueError(f"dataset={self.dataset!r} broke off after row {number}: {error}") from error

    def _check(self, columns: Iterable[str]) -> None:
        if self.text not in columns:
            raise ValueError(
                f"text={self.text!r} is not in {self.dataset}. What is there: {', '.join(sorted(columns))}"
            )


def _text(value: Any, key: str, where: str) -> Iterator[str]:
    if value is None:
        return
    if not isinstance(value, str):
        raise ValueError(f"text={key!r} holds a {type(value).__name__}, not text, in {where}. Name a text column")
    yield value


def _stat(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _format(path: Path) -> str:
    inner = path.with_suffix("") if path.suffix in COMPRESSIONS else path
    if inner.suffix not in FORMATS or (inner.suffix == ".parquet" and inner != path):
        raise ValueError(
            f"paths matches {path}, whose extension is unknown. Known: {', '.join(FORMATS)}; "
            f"after .txt and .jsonl also {', '.join(COMPRESSIONS)}"
        )
    return inner.suffix


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        import gzip

        return cast(BinaryIO, gzip.open(path))
    if path.suffix == ".bz2":
        import bz2

        return cast(BinaryIO, bz2.open(path))
    if path.suffix == ".xz":
        return cast(BinaryIO, lzma.open(path))
    if path.suffix == ".zst":
        import pyarrow

        return cast(BinaryIO, io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd")))
    return path.open("rb")


def _json_rows(path: Path, stream: BinaryIO) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(stream, 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise ValueError(f"paths: {path}, line {number} is not JSON: {error}") from error


def _parquet_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise OSError(error) from error
    with table:
        names = table.schema_arrow.names
        if text not in names:
            raise ValueError(f"text={text!r} is not in {path}. What is there: {', '.join(sorted(names))}")
        number = 0
        for batch in table.iter_batches(batch_size=256, columns=[text]):
            for value in batch.column(0).to_pylist():
                number += 1
                yield number, {text: value}
