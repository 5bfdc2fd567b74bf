"""How the held-out loss of one run falls: its lowest value so far, and when it passed a target.

    rows of metrics.jsonl --descent--> (tokens, lowest loss so far) --tokens_to--> tokens at a target

The loss is that of the weights or of any average of them, whichever is lower; between evaluations it is taken as linear
in log tokens.
"""

from collections.abc import Iterable, Mapping
from math import log
from typing import Any

import numpy as np


def is_held_out(column: str) -> bool:
    """Whether a column of the record is the held-out loss of the weights or of an average of them."""
    return column == "eval_loss" or column.startswith("eval_loss_")


def descent(rows: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """(evaluations, 2): tokens and the lowest held-out loss so far. Rows without an evaluation are left out."""
    found = []
    for row in rows:
        losses = [value for key, value in row.items() if is_held_out(key) and value is not None and value == value]
        if losses:
            found.append((row["tokens"], min(losses)))
    table = np.array(found, dtype=float).reshape(-1, 2)
    table[:, 1] = np.minimum.accumulate(table[:, 1])
    return table


def tokens_to(descent: np.ndarray, target: float) -> float:
    """Tokens at which a run was at `target`; infinite where it never was, nan where before its first evaluation."""
    tokens, losses = descent.T
    if not len(losses):
        return np.inf
    if losses[0] <= target:
        return np.nan
    after = int(np.argmax(losses <= target))
    if not after:
        return np.inf
    share = (losses[after - 1] - target) / (losses[after - 1] - losses[after])
    return float(tokens[after - 1] * (tokens[after] / tokens[after - 1]) ** share)


def loss_at(descent: np.ndarray, tokens: float) -> float:
    """The lowest loss so far after `tokens`; nan outside the evaluations."""
    return float(np.interp(log(tokens), np.log(descent[:, 0]), descent[:, 1], left=np.nan, right=np.nan))
