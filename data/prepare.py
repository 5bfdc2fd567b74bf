"""Preparing data: from a configuration to token shards in the cache, and opening what is there.

    sources, tokenizer --prepare--> <cache>/tokenizers/<key>/ and <cache>/tokens/<source>-<key>/ --open--> Prepared

Keys are hashes of what was configured; the content as found is recorded in the manifest, written last. When it has
changed, or a shard is damaged, the folder is brought up to date: new shards beside the old ones (a running job keeps
the files that it has mapped), then the manifest. A lock lets one process prepare while others wait. `data.shards`
does the work.
"""

import fcntl
import hashlib
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data import tokenizers
from data.files import write_atomic
from data.generated import Generated, Indices
from data.shards import (
    SPLITS,
    ChunkWriter,
    Vocabulary,
    canonical_json,
    chunks_of,
    content_hash,
    documents_of,
    totals,
    write_chunks,
)
from data.sources import Source
from data.tokens import MANIFEST, REBUILD, Tokens, read_manifest

VERSION = 1


@dataclass(frozen=True)
class Prepared:
    """Prepared data: memory-mapped tokens by source, and the facts that runs record."""

    sources: Mapping[str, Tokens | Indices]
    """Training split by source."""
    heldout: Mapping[str, Tokens | Indices]
    """Held-out split by source."""
    weights: dict[str, float]
    """Share of each source in training; sums to 1."""
    vocab_size: int
    """Token ids are below this (eos included; not padded)."""
    eos: int
    tokenizer_file: Path | None
    """tokenizer.json, or None for bytes; `data.tokenizers.load` opens it."""
    tokenizer_fingerprint: str

    @property
    def fingerprint(self) -> str:
        """Of the training tokens of all sources."""
        return content_hash({name: tokens.fingerprint for name, tokens in self.sources.items()})

    @property
    def heldout_fingerprint(self) -> str:
        return content_hash({name: tokens.fingerprint for name, tokens in self.heldout.items()})

    @property
    def unigram_loss(self) -> float:
        """Nats per held-out token under each source's unigram distribution; sources weighted as in training."""
        return float(sum(w * self.heldout[name].manifest["unigram_loss"] for name, w in self.weights.items()))

    @property
    def bytes_per_token_by_source(self) -> dict[str, float]:
        """Text bytes per held-out token, eos included."""
        return {name: tokens.text_bytes / tokens.n_tokens for name, tokens in self.heldout.items()}

    def summary(self) -> list[dict[str, Any]]:
        """One row per source and split, for a table."""
        return [
            {
                "source": name,
                "split": tokens.split,
                "documents": tokens.n_documents,
                "tokens": tokens.n_tokens,
                "bytes_per_token": tokens.text_bytes / tokens.n_tokens,
                "shards": len(tokens.shards),
                "unigram_loss": tokens.manifest["unigram_loss"] if tokens.split == "heldout" else None,
                "fingerprint": tokens.fingerprint,
                "folder": str(tokens.folder),
            }
            for name in self.sources
            for tokens in (self.sources[name], self.heldout[name])
        ]


def default_cache() -> Path:
    """$FULCRUM_CACHE, else fulcrum/ in the user's cache folder."""
    if chosen := os.environ.get("FULCRUM_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fulcrum"


def cache_folder(configured: str | None) -> Path:
    """The cache that `launch.cache` names; null: the default."""
    return Path(configured) if configured else default_cache()


class NotPrepared(ValueError):
    """Something is missing, changed or damaged, and `prepare` was asked not to make it."""


def prepare(
    data: Mapping[str, Any], tokenizer: Mapping[str, Any], cache: Path, processes: int | None = None,
    verify: bool = True, make: bool = True,
) -> Prepared:  # fmt: skip
    """Prepares what is missing, changed or damaged, then opens it.

    `data`: {sources: {name: config}, weights, heldout}; `tokenizer`: config; both as in `conf/`.
    `processes`: tokenizing processes (default: one per core; 1 works in this process).
    `verify`: also compare the checksums of everything prepared earlier.
    Raises ValueError for bad configuration or bad raw content; NotPrepared where there is work to do and not `make`.
    """
    request = Request(data, tokenizer, cache)
    if request.generated:
        return request.open()
    if processes is None:
        processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    signatures = {}
    for name, source in request.sources.items():
        with _naming(name):
            signatures[name] = content_hash(source.signature())
    prepared_tokenizer = _prepare_tokenizer(request, signatures, make)
    for name in request.sources:
        _prepare_source(request, name, signatures[name], prepared_tokenizer, processes, verify, make)
    return request.open()


def open_prepared(data: Mapping[str, Any], tokenizer: Mapping[str, Any], cache: Path) -> Prepared:
    """Opens what `prepare` made, without touching raw text. Raises ValueError where it is missing or truncated."""
    return Request(data, tokenizer, cache).open()


class Request:
    """A validated configuration and the folders that it names. Touches no raw text. Raises ValueError."""

    def __init__(self, data: Mapping[str, Any], tokenizer: Mapping[str, Any], cache: Path):
        data, tokenizer = _resolved("data", data), _resolved("tokenizer", tokenizer)
        if unknown := set(data) - {"sources", "weights", "heldout"}:
            raise ValueError(f"data.{min(unknown)} is not known. Known: data.sources, data.weights, data.heldout")
        self.heldout = data.get("heldout", 0.02)
        if not isinstance(self.heldout, (int, float)) or not 0 < self.heldout < 1:
            raise ValueError(f"data.heldout={self.heldout!r} is not a share between 0 and 1. Use, for example, 0.02")
        if not data.get("sources"):
            raise ValueError("data.sources is empty. Name at least one source, or take data=stdlib")
        self.sources: dict[str, Source] = {}
        for name, config in data["sources"].items():
            if not re.fullmatch(r"[A-Za-z0-9_]+", str(name)):
                raise ValueError(f"data.sources.{name}: names are made of letters, digits and _. Rename the source")
            with _naming(name):
                self.sources[name] = tokenizers.instantiate(config)
        self.generated = any(isinstance(source, Generated) for source in self.sources.values())
        if self.generated and len(self.sources) > 1:
            raise ValueError(f"data.sources={list(self.sources)}: a problem with a known answer stands alone.")
        self.weights = data.get("weights")
        if self.weights is not None and (
            set(self.weights) != set(self.sources)
            or not all(isinstance(w, (int, float)) and 0 < w < math.inf for w in self.weights.values())
        ):
            raise ValueError(
                f"data.weights={self.weights}: give each of {', '.join(self.sources)} a positive number, or use null"
            )
        self.recipe: tokenizers.Recipe = tokenizers.instantiate(tokenizer)
        recipe = {"version": VERSION, "tokenizer": self.recipe.identity()}
        if self.recipe.sample_bytes:
            recipe |= {"sources": self.identities(), "heldout": self.heldout}
        self.cache, self.tokenizer_key = Path(cache).expanduser().absolute(), content_hash(recipe)[:12]

    def identities(self) -> dict[str, Any]:
        return {name: source.identity() for name, source in self.sources.items()}

    @property
    def tokenizer_folder(self) -> Path:
        return self.cache / "tokenizers" / self.tokenizer_key

    def folder(self, name: str) -> Path:
        key = [VERSION, self.sources[name].identity(), self.heldout, self.tokenizer_key]
        return self.cache / "tokens" / f"{name}-{content_hash(key)[:12]}"

    def vocabulary(self) -> Vocabulary:
        """The tokenizer, which must be in place. Raises ValueError where it is missing or damaged."""
        if isinstance(self.recipe, tokenizers.Bytes):
            fingerprint = content_hash(self.recipe.identity())
            return Vocabulary(None, fingerprint, self.recipe.vocab_size, self.recipe.eos)
        manifest, file = read_manifest(self.tokenizer_folder), self.tokenizer_folder / "tokenizer.json"
        if not file.exists() or hashlib.sha256(file.read_bytes()).hexdigest() != manifest["sha256"]:
            raise ValueError(f"{file} is missing or damaged. {REBUILD}")
        return Vocabulary(file, manifest["sha256"], manifest["vocab_size"], manifest["eos"])

    def open(self) -> Prepared:
        if self.generated:
            return self._open_generated()
        vocabulary = self.vocabulary()
        splits = {split: {name: Tokens(self.folder(name), split) for name in self.sources} for split in SPLITS}
        for tokens in splits["train"].values():
            if tokens.manifest["tokenizer"]["fingerprint"] != vocabulary.fingerprint:
                raise ValueError(f"{tokens.folder} was made with another training of the tokenizer. {REBUILD}")
        weights = self.weights or {name: tokens.n_tokens for name, tokens in splits["train"].items()}
        total = math.fsum(weights.values())
        return Prepared(
            sources=splits["train"],
            heldout=splits["heldout"],
            weights={name: weights[name] / total for name in self.sources},
            vocab_size=vocabulary.vocab_size,
            eos=vocabulary.eos,
            tokenizer_file=vocabulary.file,
            tokenizer_fingerprint=vocabulary.fingerprint,
        )

    def _open_generated(self) -> Prepared:
        """Rows that are drawn as they are needed: nothing lies anywhere."""
        ((name, source),) = self.sources.items()
        assert isinstance(source, Generated)
        train, heldout = ({name: Indices(source, split)} for split in SPLITS)
        return Prepared(train, heldout, {name: 1.0}, vocab_size=1, eos=0, tokenizer_file=None, tokenizer_fingerprint="")


def _prepare_tokenizer(request: Request, signatures: dict[str, str], make: bool) -> Vocabulary:
    if isinstance(request.recipe, tokenizers.Bytes):
        return request.vocabulary()
    # A tokenizer trained on text that has changed is trained anew; if it comes out equal, the shards stay.
    trained_on = signatures if request.recipe.sample_bytes else {}

    folder = request.tokenizer_folder

    def ready() -> Vocabulary | None:
        try:
            vocabulary = request.vocabulary()
            return vocabulary if read_manifest(folder)["signatures"] == trained_on else None
        except (ValueError, LookupError, TypeError):
            return None

    if vocabulary := ready():
        return vocabulary
    if not make:
        raise NotPrepared(f"the tokenizer {folder} is not prepared")
    with _lock(folder):
        if vocabulary := ready():
            return vocabulary
        _say("preparing the tokenizer")
        content = request.recipe.make(_sample(request))
        assert content is not None
        write_atomic(folder / "tokenizer.json", content.encode())
        made = tokenizers.Library(folder / "tokenizer.json")
        manifest = {
            "version": VERSION,
            "tokenizer": request.recipe.identity(),
            "sources": request.identities() if trained_on else {},
            "signatures": trained_on,
            "sha256": hashlib.sha256(content.encode()).hexdigest(),
            "vocab_size": request.recipe.vocab_size,
            "tokens_in_file": made.vocab_size,
            "eos": made.eos,
        }
        write_atomic(folder / MANIFEST, canonical_json(manifest, indent=1))
    return request.vocabulary()


def _sample(request: Request) -> Iterator[str]:
    """The first training documents of every source, an equal amount of text from each."""
    for name, source in request.sources.items():
        left = request.recipe.sample_bytes // len(request.sources)
        with _naming(name):
            for document in documents_of(source, request.heldout):
                if left <= 0:
                    break
                if not document.heldout:
                    left -= len(document.raw)
                    yield document.raw.decode()


def _prepare_source(
    request: Request, name: str, signature: str, vocabulary: Vocabulary, processes: int, verify: bool, make: bool
) -> None:
    folder = request.folder(name)
    dtype = np.dtype("<u2" if vocabulary.vocab_size <= 1 << 16 else "<u4")
    header = {
        "version": VERSION,
        "source": name,
        "config": request.sources[name].identity(),
        "signature": signature,
        "heldout": request.heldout,
        "tokenizer": {key: getattr(vocabulary, key) for key in ("fingerprint", "vocab_size", "eos")},
        "dtype": dtype.str,
    }
    if _problem(folder, header, verify) is None:
        return
    if not make:
        raise NotPrepared(f"{folder} is not prepared")
    with _lock(folder):
        # Asked again: while this process waited for the lock, another may have done the work.
        if (problem := _problem(folder, header, verify)) is None:
            return
        if problem:
            _say(f"{name}: {problem}")
        writer = ChunkWriter(folder, vocabulary, dtype)
        chunks = chunks_of(request.sources[name], request.heldout, vocabulary.fingerprint)
        with _naming(name), _progress(name) as advance:
            finished, counts = write_chunks(writer, chunks, processes, advance)
        manifest = header | totals(name, finished, counts, request.heldout)
        old = _files_of(folder)
        write_atomic(folder / MANIFEST, canonical_json(manifest, indent=1))
        # Readers of the last manifest may still open its shards, so those stay for one more generation;
        # older ones go, and so does what a killed process left half written.
        keep = old | _files_of(folder) | {MANIFEST} | {writer.record(chunk).name for chunk in finished}
        for stray in folder.iterdir():
            if stray.name not in keep:
                stray.unlink()


def _problem(folder: Path, header: dict[str, Any], verify: bool) -> str | None:
    """None: all is in place. Else what to say before preparing; nothing when there is nothing yet."""
    if not (folder / MANIFEST).exists():
        return ""
    try:
        splits = [Tokens(folder, split) for split in SPLITS]
        manifest = splits[0].manifest
        if changed := [key for key, value in header.items() if manifest[key] != value]:
            return f"{' and '.join(changed)} changed since it was prepared. Preparing again"
        if verify:
            for tokens in splits:
                tokens.verify()
    except (ValueError, LookupError, TypeError) as error:
        return str(error).replace(REBUILD, "Rebuilding it")
    return None


def _files_of(folder: Path) -> set[str]:
    try:
        splits = read_manifest(folder)["splits"].values()
        return {shard[key] for split in splits for shard in split["shards"] for key in ("file", "index")}
    except (ValueError, LookupError, TypeError, AttributeError):
        return set()


def _resolved(key: str, config: Mapping[str, Any]) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        node = config if OmegaConf.is_config(config) else OmegaConf.create(dict(config))
        plain = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"{key}.{error.full_key}: {str(error).splitlines()[0]}. Give it a value") from error
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items()}


@contextmanager
def _naming(source: str) -> Iterator[None]:
    """Puts the source's key before its errors, which begin with the offending field."""
    try:
        yield
    except ValueError as error:
        if str(error).startswith("data."):
            raise
        raise ValueError(f"data.sources.{source}: {error}") from error


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"waiting for another process that prepares {folder}")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int], None]]:
    """A bar of text bytes on a terminal; one line at the end elsewhere."""
    if not sys.stderr.isatty():
        total = 0

        def advance(size: int) -> None:
            nonlocal total
            total += size

        yield advance
        _say(f"prepared {name}: {total / 1e6:.1f} MB of text")
        return
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, SpinnerColumn, TextColumn, TransferSpeedColumn

    columns = (SpinnerColumn(), TextColumn(f"preparing {name}"), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=None)
        yield lambda size: progress.advance(task, size)


def _say(line: str) -> None:
    print(f"fulcrum data: {line}", file=sys.stderr, flush=True)
