"""Rows that may enter a fit but deserve a word: copies, early ends, repeated data, mixed conventions, odd units."""

from __future__ import annotations

import numpy as np
import pandas as pd

from scaling.laws.law import Law

_UNIQUE_TOKENS = (
    "tokens_before_repeat",
    "U",
    "unique_tokens",
    "train_tokens_available",
    "train_tokens",
)  # the first that a row has counts
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


def notes(law: Law, table: pd.DataFrame, used: pd.DataFrame, counted: bool) -> list[str]:
    """One sentence per finding. `table`: the caller's rows; `used`: what the fit takes from them; `counted`: whether C
    is the table's own."""
    return [
        *_copies(table, used),
        *_early(table),
        *_repeated(law, table, used),
        *_lengths(table),
        *_units(used, counted),
        *(_conventions(used) if counted else []),
        *_axes(law, used),
    ]


def _copies(table: pd.DataFrame, used: pd.DataFrame) -> list[str]:
    copies = int(used.duplicated([c for c in used if c != "group" or "run_id" in table]).sum())
    return [f"{copies} rows are exact copies of others: they count twice unless you remove them."] if copies else []


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
    if "sequence_length" not in table:
        return []
    counts = table["sequence_length"].dropna().value_counts()
    if len(counts) < 2:
        return []
    listed = ", ".join(f"{length:g} ({count} rows)" for length, count in counts.items())
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
    ratio = np.log(used["C"] / (6 * used["N"] * used["D"]))[used["N"].argsort().index]
    ratio = ratio.iloc[np.argsort(used["N"].to_numpy(), kind="stable")]
    off = (ratio - ratio.rolling(_NEIGHBOURS, center=True, min_periods=1).median()).abs() > np.log(_RATIO_JUMP)
    if not off.any():
        return []
    return [
        f"C / 6 N D of {int(off.sum())} rows (the first is row {off[off].index[0]}) is off that of rows of similar N "
        f"by more than {_RATIO_JUMP - 1:.0%}: is N counted with embeddings in some rows and without in others?"
    ]


def _axes(law: Law, used: pd.DataFrame) -> list[str]:
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
    for column, about in law.columns.items():
        values = used[column].nunique()
        if len(about.tells) > 1 and values < 3:
            said.append(f"{column} takes {values} values only: an offset, a coefficient and an exponent need three.")
    return said
