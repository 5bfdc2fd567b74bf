"""Tokenizers: bytes, a byte-level BPE trained on the sources, or any tokenizer.json.

A recipe (`Bytes`, `BPE`, `File`: what the configuration names) makes a tokenizer.json once; `load` opens it as a
`Tokenizer`, which the workers of `data.prepare` call. Bytes need no file: the recipe is the tokenizer.
Documents are encoded without end-of-text; whoever stores them appends `eos`.
"""

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

END_OF_TEXT = "<|endoftext|>"
EOS_NAMES = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>")


class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos(self) -> int: ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One array of ids per text, without eos. Special tokens spelled out in a text are ordinary text."""

    def decode(self, ids: Iterable[int]) -> str: ...


class Recipe(Protocol):
    """How a tokenizer.json comes about. `sample_bytes` is how much text `make` wants to read (0: none)."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def sample_bytes(self) -> int: ...

    def identity(self) -> dict[str, Any]:
        """The resolved configuration as JSON; it names the tokenizer's folder."""

    def make(self, texts: Iterable[str]) -> str | None:
        """The content of tokenizer.json; None where no file is needed."""


class Bytes:
    """UTF-8 bytes are the tokens; 256 ends a document."""

    vocab_size: ClassVar[int] = 257
    eos: ClassVar[int] = 256
    sample_bytes: ClassVar[int] = 0

    def identity(self) -> dict[str, Any]:
        return {"kind": "bytes"}

    def make(self, texts: Iterable[str]) -> None:
        return None

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode("utf-8", "replace"), np.uint8) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")


class BPE:
    """Byte-level BPE with GPT-2's pre-tokenization, trained on the first `sample_bytes` of the training documents."""

    def __init__(self, vocab_size: int = 1024, sample_bytes: int = 16_777_216):
        if not isinstance(vocab_size, int) or vocab_size < 257:
            raise ValueError(f"tokenizer.vocab_size={vocab_size!r} is below 256 bytes + {END_OF_TEXT}. Use 257 or more")
        if not isinstance(sample_bytes, int) or sample_bytes < 1:
            raise ValueError(
                f"tokenizer.sample_bytes={sample_bytes!r} is not a number of bytes. Use a positive integer"
            )
        self.vocab_size, self.sample_bytes = vocab_size, sample_bytes

    def identity(self) -> dict[str, Any]:
        return {"kind": "bpe", "vocab_size": self.vocab_size, "sample_bytes": self.sample_bytes}

    def make(self, texts: Iterable[str]) -> str:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size, special_tokens=[END_OF_TEXT], show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )  # fmt: skip
        tokenizer.train_from_iterator(texts, trainer)
        if (found := tokenizer.get_vocab_size()) < self.vocab_size:
            warnings.warn(
                f"tokenizer.vocab_size={self.vocab_size}: the text yields only {found} tokens. "
                "The other rows of the embedding stay unused; ask for less, or train on more text",
                stacklevel=2,
            )
        return str(tokenizer.to_str())


class File:
    """Any tokenizer.json of the `tokenizers` library, with an end-of-text token among its special tokens."""

    sample_bytes: ClassVar[int] = 0

    def __init__(self, path: str):
        self.path = Path(path).expanduser().absolute()
        try:
            self._content = self.path.read_text("utf-8")
            content = json.loads(self._content)
            self.vocab_size = _vocab_size_in(content)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"tokenizer.path={str(path)!r} is not a tokenizer.json ({type(error).__name__}: {error}). "
                "Give a file that the tokenizers library saved"
            ) from error
        _eos_in(content, f"tokenizer.path={str(path)!r}")

    def identity(self) -> dict[str, Any]:
        return {"kind": "file", "sha256": hashlib.sha256(self._content.encode()).hexdigest()}

    def make(self, texts: Iterable[str]) -> str:
        return self._content


class Library:
    """A tokenizer.json opened with the `tokenizers` library."""

    def __init__(self, file: Path):
        from tokenizers import Tokenizer

        content = file.read_text("utf-8")
        parsed = json.loads(content)
        self.vocab_size = _vocab_size_in(parsed)
        self.eos = _eos_in(parsed, str(file))
        self._tokenizer = Tokenizer.from_str(content)
        # None of these three is what a file should decide about pretraining text; the first is not stored in it.
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        # The fast variant leaves out the offsets, which nobody reads here.
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True))


def load(file: Path | None) -> Tokenizer:
    """The tokenizer of a prepared folder: `Prepared.tokenizer_file`, or None for bytes."""
    return Bytes() if file is None else Library(file)


def vocab_size_of(config: Mapping[str, Any]) -> int:
    """Vocabulary size of a tokenizer configuration, eos included, without preparing anything.

    A trained BPE counts as many as were asked for. Raises ValueError for a bad configuration.
    """
    return int(instantiate(config).vocab_size)


def instantiate(config: Mapping[str, Any]) -> Any:
    """The object that a configuration with `_target_` describes; all that is wrong with it is a ValueError."""
    import hydra.utils
    from hydra.errors import InstantiationException

    try:
        return hydra.utils.instantiate(config, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise ValueError(f"{dict(config)}: {error}") from error


def _vocab_size_in(content: dict[str, Any]) -> int:
    vocab = content["model"]["vocab"]
    ids = vocab.values() if isinstance(vocab, dict) else range(len(vocab))
    return 1 + max([*ids, *(token["id"] for token in content.get("added_tokens") or [])])


def _eos_in(content: dict[str, Any], where: str) -> int:
    special = {token["content"]: int(token["id"]) for token in content.get("added_tokens") or [] if token["special"]}
    for name in EOS_NAMES:
        if name in special:
            return special[name]
    raise ValueError(
        f"{where} has no end-of-text token (its special tokens: {', '.join(special) or 'none'}). "
        f"Add one of {', '.join(EOS_NAMES)} with tokenizer.add_special_tokens([...]) and save the file again"
    )
