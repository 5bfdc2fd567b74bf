"""Sources of rows that are drawn rather than read: a problem with a known answer as `data=...`.

    sample index --draw--> a row x and its answer y for every replica      the same ones for an index, whoever asks

A row is one token, so the sample order, batches, ramps and restarts of text serve rows as they are: a "token" is the
number of its row. Nothing is prepared or stored.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.order import mixed
from data.problems import Floats, LinearProblem, power_law
from data.separable import LogisticProblem, separable
from data.tokens import Tokens

Int = NDArray[np.int64]

ENDLESS = 2**40
"""samples of a stream of fresh rows: no run sees one twice"""


class Generated(ABC):
    """A source whose rows follow from their index. `samples`: how many there are before they repeat. `loss`: square
    or logistic; `loss_at_start`: its mean at w = 0."""

    dimension: int
    samples: int
    loss: str
    loss_at_start: float

    @abstractmethod
    def identity(self) -> dict[str, Any]: ...

    @abstractmethod
    def draw(self, index: Int, replicas: int) -> tuple[Floats, Floats]:
        """Rows x (n, replicas, d) and answers y (n, replicas) of the indices (n,)."""


class PowerLaw(Generated):
    """Fresh Gaussian rows of `data.problems.power_law`."""

    def __init__(self, dimension: int, a: float, b: float, noise_variance: float) -> None:
        self.problem: LinearProblem = power_law(dimension, a, b, noise_variance)
        self.dimension, self.samples, self.loss = dimension, ENDLESS, "square"
        self.loss_at_start = (self.problem.initial_risk + noise_variance) / 2
        self._identity = {"dimension": dimension, "a": a, "b": b, "noise_variance": noise_variance}

    def identity(self) -> dict[str, Any]:
        return {"kind": "power_law"} | self._identity

    def draw(self, index: Int, replicas: int) -> tuple[Floats, Floats]:
        """Every replica has rows of its own."""
        problem = self.problem
        normal = normals(index[:, None] * replicas + np.arange(replicas), problem.dimension + 1)
        x = normal[..., :-1] * np.sqrt(problem.eigenvalues)
        return x, x @ problem.target + np.sqrt(problem.noise_variance) * normal[..., -1]


class Separable(Generated):
    """The rows of `data.separable.separable`, again and again: a batch of `samples` rows is the whole data set."""

    def __init__(self, samples: int, dimension: int, margin: float, seed: int) -> None:
        self.problem: LogisticProblem = separable(samples, dimension, margin, seed)
        self.dimension, self.samples = dimension, samples
        self.loss, self.loss_at_start = "logistic", float(np.log(2.0))
        self._identity = {"samples": samples, "dimension": dimension, "margin": margin, "seed": seed}

    def identity(self) -> dict[str, Any]:
        return {"kind": "separable"} | self._identity

    def draw(self, index: Int, replicas: int) -> tuple[Floats, Floats]:
        """Replica k is k rows ahead, so that every epoch of every replica has each row once."""
        place = (index[:, None] + np.arange(replicas)) % self.samples
        return self.problem.rows[place], self.problem.labels[place]


class Indices(Tokens):
    """The stream of a generated source, in which token i is row i. No files lie behind it."""

    def __init__(self, source: Generated, split: str) -> None:
        self.split, self.folder = split, Path("drawn as needed")
        self.n_tokens = source.samples + 1  # the last sample's successor
        self.n_documents, self.text_bytes, self.shards = 0, self.n_tokens, []
        digest = hashlib.sha256(json.dumps(source.identity(), sort_keys=True).encode())
        self.fingerprint = digest.hexdigest()
        self.manifest = {"unigram_loss": source.loss_at_start}

    def windows(self, starts: Int, length: int) -> Int:
        """Row numbers of B windows: int64[B] -> int64[B, length]."""
        return starts.astype(np.int64)[:, None] + np.arange(length)


def normals(index: Int, count: int) -> Floats:
    """`count` independent standard normal numbers for every index, (..., count): the same ones whenever asked.

    The generator SplitMix64, evaluated at its counter, and the transform of Box and Muller.
    """
    pairs = -(-count // 2)
    counter = index.astype(np.uint64)[..., None] * np.uint64(pairs) + np.arange(pairs, dtype=np.uint64)
    bits = mixed(((counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64))
    radius = np.sqrt(-2.0 * np.log(((bits >> np.uint64(32)).astype(np.float64) + 0.5) * 2.0**-32))
    angle = (bits & np.uint64(0xFFFFFFFF)).astype(np.float64) * (2.0 * np.pi * 2.0**-32)
    found = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return found.reshape(*index.shape, 2 * pairs)[..., :count]
