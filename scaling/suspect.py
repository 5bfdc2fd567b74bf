"""Rows that may enter a fit but deserve a word: copies, early ends, repeated data, mixed conventions, odd units."""

from __future__ import annotations

from collections.abc import Set

import numpy as np
import pandas as pd

from scaling.laws.law import Law

_UNIQUE_TOKENS = (
    "tokens_before_repeat",
    "U",
    "unique_tokens",
    "unique",
    "train_tokens_available",
    "train_tokens",
)  # the first that a row has counts
_LENGTHS = ("sequence_length", "seq_len", "seq_length", "context_length")
_WILD = 3.0  # times the median loss
_TOKENS_PER_PARAMETER = (1e-3, 1e5)  # what anybody has trained
_SHARED_LINE = 0.999  # |correlation| of two log columns above which a family of runs has one axis only
_RATIO_JUMP = 1.25  # of C / 6ND against rows of neighbouring N
_NEIGHBOURS = 7
# Column -> the range that language models have ever had, and what a value outside it suggests.
_PLAUSIBLE = {
    "N": (1e3, 1e14, "parameters (not millions or billions of them)"),
    "D": (1e4, 1e15, "tokens (not millions or billions of them)"),
    "C": (1e9, 1e28, "FLOPs (not PetaFLOP-days or GPU-hours)"),
    "loss": (0.2, 15.0, "nats per token (not perplexity, or a total)"),
}


def notes(law: Law, table: pd.DataFrame, used: pd.DataFrame, counted: bool, fixed: Set[str]) -> list[str]:
    """One sentence per finding. `table`: the caller's rows; `used`: what the fit takes from them; `counted`: whether C
    is the table's own; `fixed`: parameters that are not fitted."""
    return [
        *_copies(used),
        *_wild(law, used),
        *_early(table),
        *_repeated(law, table, used),
        *_lengths(table),
        *_units(used, counted),
        *(_conventions(used) if counted else []),
        *_axes(law, used, fixed),
    ]


def _copies(used: pd.DataFrame) -> list[str]:
    copies = int(used.duplicated([c for c in used if c not in ("group", "weight")]).sum())
    return [f"{copies} rows are exact copies of others: they count twice unless you remove them."] if copies else []


def _wild(law: Law, used: pd.DataFrame) -> list[str]:
    if law.target != "loss" or law.along_curves:
        return []
    wild = used["loss"] > _WILD * used["loss"].median()
    if not wild.any():
        return []
    return [
        f"{int(wild.sum())} rows have a loss more than {_WILD:g} times the median, the first is row "
        f"{used.index[wild][0]} ({used['loss'][wild].iloc[0]:.4g}): if those runs diverged, leave them out (filter)."
    ]


def _early(table: pd.DataFrame) -> list[str]:
    if "stop_reason" not in table:
        return []
    early = table["stop_reason"].fillna("budget").ne("budget")
    if not early.any():
        return []
    reasons = ", ".join(sorted(table["stop_reason"][early].unique()))
    return [f"{int(early.sum())} runs stopped early ({reasons}): their learning rate had not come down."]


def _repeated(law: Law, table: pd.DataFrame, used: pd.DataFrame) -> list[str]:
    known = [pd.to_numeric(table[c], errors="coerce").astype(float) for c in _UNIQUE_TOKENS if c in table]
    if not known or "D" not in used or "U" in law.columns:
        return []
    unique = pd.concat(known, axis=1).bfill(axis=1).iloc[:, 0].fillna(np.inf)
    repeated = used["D"] > unique
    if not repeated.any():
        return []
    most = (used["D"] / unique)[repeated].max()
    return [
        f"{int(repeated.sum())} runs saw their data more than once (up to {most:.1f} times): {law.name} takes "
        "every token as new, so it understates what their tokens would have been worth fresh (law=data_constrained)."
    ]


def _lengths(table: pd.DataFrame) -> list[str]:
    name = next((name for name in _LENGTHS if name in table), None)
    if name is None:
        return []
    counts = table[name].dropna().value_counts()
    if len(counts) < 2:
        return []
    listed = ", ".join(f"{length} ({count} rows)" for length, count in counts.items())
    return [
        f"Sequence lengths differ: {listed}. A token's loss falls with the context before it, so part of what the law "
        "sees is sequence length: fit one length at a time (filter)."
    ]


def _units(used: pd.DataFrame, counted: bool) -> list[str]:
    said = []
    for column, (low, high, unit) in _PLAUSIBLE.items():
        if column in used and (column != "C" or counted):
            middle = float(used[column].median())
            if not low <= middle <= high:
                said.append(f"{column} is {middle:.3g} in the middle of the rows: are these {unit}?")
    if {"N", "D"} <= set(used):
        each = used["D"] / used["N"]
        odd = (each < _TOKENS_PER_PARAMETER[0]) | (each > _TOKENS_PER_PARAMETER[1])
        if odd.any():
            first = used.index[odd][0]
            said.append(
                f"{int(odd.sum())} rows have an odd number of tokens per parameter, the first is row {first} with "
                f"{each[odd].iloc[0]:.3g}: are N and D there in the units of the others, parameters and tokens?"
            )
    if counted and {"N", "D", "C"} <= set(used):
        ratio = float((used["C"] / (6 * used["N"] * used["D"])).median())
        if not 0.2 <= ratio <= 30:
            said.append(
                f"C is {ratio:.2g} times 6 N D in the middle of the rows: a unit is wrong by a power of ten, or C "
                "counts something else."
            )
    return said


def _conventions(used: pd.DataFrame) -> list[str]:
    """C / 6ND depends smoothly on N within one way of counting; rows that leave the line count N (or C) otherwise."""
    if not {"N", "D", "C"} <= set(used) or len(used) < 2 * _NEIGHBOURS:
        return []
    ratio = np.log(used["C"] / (6 * used["N"] * used["D"]))
    ratio = ratio.iloc[np.argsort(used["N"].to_numpy(), kind="stable")]
    off = (ratio - ratio.rolling(_NEIGHBOURS, center=True, min_periods=1).median()).abs() > np.log(_RATIO_JUMP)
    if not off.any():
        return []
    return [
        f"C / 6 N D of {int(off.sum())} rows (the first is row {off[off].index[0]}) is off that of rows of similar N "
        f"by more than {_RATIO_JUMP - 1:.0%}: is N counted with embeddings in some rows and without in others?"
    ]


def _axes(law: Law, used: pd.DataFrame, fixed: Set[str]) -> list[str]:
    said = []
    sizes = [column.name for column in law.inputs if column.domain == "positive"]
    logs = np.log(used[sizes].to_numpy(float))
    for i, left in enumerate(sizes):
        for j, right in list(enumerate(sizes))[i + 1 :]:
            varying = np.ptp(logs[:, [i, j]], axis=0).min() > 0
            if varying and abs(np.corrcoef(logs[:, i], logs[:, j])[0, 1]) > _SHARED_LINE:
                said.append(
                    f"{left} and {right} rise together in all runs: what one does is barely told from what the other "
                    f"does. Add runs with other ratios of {right} to {left}."
                )
    told = {name for column in law.inputs for name in column.tells}
    shared = [name for name in law.names if name not in told and name not in fixed]  # an offset, say
    for column in law.inputs:
        own = [name for name in column.tells if name not in fixed]
        values = used[column.name].nunique()
        if own and 1 < values < len(own) + bool(shared):
            names = " and ".join([*shared[:1], *own])
            said.append(f"{column.name} takes {values} values only, too few to tell {names} apart.")
    return said
