"""Numbers and tables of runs as the field writes them: 1.2M, 3.4e15, and which columns of a run are worth showing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

DASH = "\N{EN DASH}"
_CHOICES = 5  # configuration columns that a table of runs shows


def short(count: float) -> str:
    """1234567 -> "1.2M", 52300 -> "52k": counts of parameters and tokens."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * size:
            value = count / size
            return f"{value:.0f}{unit}" if value >= 9.95 else f"{value:.1f}{unit}"
    return f"{count:.3g}"


def flops(count: float) -> str:
    """1.2e15."""
    return f"{count:.1e}".replace("e+", "e")


def three(value: float) -> str:
    """Three digits, trailing zeros kept: 2.00, 22.2, 493."""
    return f"{value:#.3g}".rstrip(".")


def thousandth(value: float) -> str:
    """Three decimals, for losses."""
    return f"{value:.3f}"


def hundredth(value: float) -> str:
    """Two decimals, for exponents and shares."""
    return f"{value:.2f}"


def signed(value: float) -> str:
    """+0.0123, for differences of losses."""
    return f"{value:+.4f}"


def between(low: float, high: float, shown: Callable[[float], str] = three) -> str:
    """low to high."""
    return f"{shown(low)} to {shown(high)}"


def minima(count: int) -> str:
    """How many minima the starts of a fit found."""
    return "the only minimum found" if count == 1 else f"the best of {count} minima found"


# Column of a run's row -> its heading, and how its numbers are written.
RUN_COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "N": ("N", short),
    "D": ("tokens D", short),
    "tokens_per_parameter": ("D / N", three),
    "own_tokens": ("own tokens", short),
    "C": ("FLOPs C", flops),
    "own_flops": ("own FLOPs", flops),
    "loss": ("training loss", thousandth),
    "eval_loss": ("held-out loss", lambda x: f"{x:.4f}"),
    "eval_bits_per_byte": ("bits per byte", lambda x: f"{x:.4f}"),
    "steps": ("steps", lambda x: f"{x:.0f}"),
    "seconds": ("seconds", lambda x: f"{x:.1f}" if x < 100 else f"{x:.0f}"),
}
# Constants and results: not choices of the sweep, whether or not they vary.
_NOT_CHOICES = {
    *RUN_COLUMNS, "folder", "run_id", "experiment", "status", "stop_reason", "overrides", "N_total", "flops_per_token",
    "tokens", "flops", "total_tokens", "unigram_loss", "train_tokens", "created", "code_version", "parent",
    "unique_tokens", "tokens_before_repeat",
    "data_fingerprint", "heldout_fingerprint", "tokenizer_fingerprint",
}  # fmt: skip


def results(runs: pd.DataFrame) -> list[str]:
    """The columns of RUN_COLUMNS that have values, then downstream errors; what runs cost themselves, where some are
    branches and go on from the tokens of others."""
    own = ("own_tokens", "own_flops") if has_branches(runs) else ()
    shown = [name for name in RUN_COLUMNS if name in own or not name.startswith("own_")]
    shown += sorted(name for name in map(str, runs) if name.startswith("err."))
    return [name for name in shown if name in runs and runs[name].notna().any()]


def has_branches(runs: pd.DataFrame) -> bool:
    """Whether some of the runs go on from another."""
    return "parent" in runs and bool(runs["parent"].notna().any())


def configuration(runs: pd.DataFrame) -> list[str]:
    """Columns that say what a run was asked to be: no results, no constants, not how it was launched."""
    apart = ("launch.", "context.", "eval", "vars.", "averages", "err.")
    return [name for name in map(str, runs) if name not in _NOT_CHOICES and not name.startswith(apart)]


def choices(runs: pd.DataFrame) -> list[str]:
    """Configuration columns that differ between the runs, at most a handful, fewest values first.

    What N already says (model.* that differ only from size to size) is left out.
    """
    varying = []
    for name in configuration(runs):
        values = runs[name].map(lambda x: str(x) if isinstance(x, list | dict) else x)
        if name.startswith("model.") and values.groupby(runs["N"]).nunique(dropna=False).max() == 1:
            continue
        if values.nunique(dropna=False) > 1:
            varying.append((values.nunique(), name))
    return [name for _, name in sorted(varying)[:_CHOICES]]


def cell(
    value: Any, shown: Callable[[float], str] = lambda x: f"{x:.4g}" if abs(x) < 1 else f"{x:g}"
) -> tuple[str, float | None]:
    """The text of a value, and its number where it is one."""
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower(), None
    if isinstance(value, int | float | np.number):
        return (shown(float(value)), float(value)) if np.isfinite(value) else (DASH, None)
    return DASH if value is None or value is pd.NA else str(value), None


def heading(name: str) -> str:
    """Of a column in a table of runs."""
    return RUN_COLUMNS[name][0] if name in RUN_COLUMNS else name


def shown(run: pd.Series, name: str) -> tuple[str, float | None]:
    """The `cell` of a run's column, written as RUN_COLUMNS say."""
    return cell(run[name], *RUN_COLUMNS.get(name, ())[1:])


def plain(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row of a table as JSON has it."""
    return {str(name): plain_value(x) for name, x in row.items()}


def plain_value(x: Any) -> Any:
    """Python's own number for one of numpy's; None (null) where a number is missing or infinite."""
    x = x.item() if isinstance(x, np.generic) else x
    return None if isinstance(x, float) and not np.isfinite(x) else x
