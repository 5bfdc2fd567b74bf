"""Which rows of a table may enter a fit, under which names, and what has to be said about them.

A table is a row per run: the records of Fulcrum (`data.records.load_runs`) or anybody's. Rows that would spoil a fit
are refused with the fix (missing or non-positive values, mixed tokenizers or held-out sets, too few settings, a
column that does not vary); runs that did not complete are left out and counted, and so are those that stopped before
their budget where a law of final losses is fitted; what merely deserves doubt is noted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass

import numpy as np
import pandas as pd

from scaling import suspect
from scaling.laws.law import Law
from scaling.settings import STOPPED, stopped, told_stopped

_KINDS = {
    "tokenizer_fingerprint": "tokenizers",
    "tokenizer": "tokenizers",
    "heldout_fingerprint": "held-out sets",
    "heldout": "held-out sets",
    "N_convention": "ways of counting N",
}
_OTHER_FIX = "Fit one group at a time (filter), or compare columns.loss=eval_bits_per_byte on the same text."
_FIX = {
    "N_convention": "Count N in one way in all rows; records of Fulcrum count it without embedding and output head.",
}


@dataclass(frozen=True)
class Rows:
    """The rows of one fit.

    `table` has the law's columns and target, `C` (training FLOPs, when the table has or implies them), `weight`,
    `group` (rows of one run share it; the bootstrap draws groups), the index of the caller's table, in a canonical
    order that does not depend on the caller's. `convention` says in words how N and C are counted, `excluded` counts
    rows that were left out, by status or stop_reason.
    """

    table: pd.DataFrame
    columns: dict[str, str]
    convention: dict[str, str]
    excluded: dict[str, int]
    notes: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with the fitted numbers and with nothing else."""
        hashed = hashlib.sha256()
        for name in self.table.drop(columns="group"):
            values = self.table[name].to_numpy()
            hashed.update(values.tobytes() if values.dtype == float else "\n".join(map(str, values)).encode())
        return hashed.hexdigest()[:16]


def prepare(
    law: Law,
    table: pd.DataFrame,
    columns: Mapping[str, str] | None = None,
    weights: str | np.ndarray | None = None,
    fixed: Set[str] = frozenset(),
    logs: bool = True,
) -> Rows:
    """The rows of `table` that `law` can be fitted to. Raises ValueError with the fix where there are none.

    `columns` maps the law's names to the table's, as {"N": "params"}. Without it a column is found under its own
    name, and the loss is `eval_loss` where there is one. `weights`: see `scaling.fit.fit`. `fixed`: names of
    parameters that are not fitted. `logs`: whether the target's logarithm is needed.
    """
    names = _column_names(law, table, columns or {})
    table = table.assign(weight=_weights(table, weights))
    table, excluded = _completed(table, of_final_losses=law.target == "loss" and not law.along_curves)
    _one_kind(table, names[law.target])
    domains = {column.name: column.domain for column in law.inputs} | {law.target: "positive" if logs else "any"}
    used = pd.DataFrame(
        {ours: _values(table, ours, theirs, domains.get(ours, "positive")) for ours, theirs in names.items()},
        index=table.index,
    )
    law.check(used)
    convention = _convention(table, used, names)
    if "C" not in used and {"N", "D"} <= set(used):
        used["C"] = 6.0 * used["N"] * used["D"]
    used["group"] = table["run_id"].astype(str) if "run_id" in table else np.arange(len(table)).astype(str)
    weight = table["weight"]
    if not (np.isfinite(weight) & (weight >= 0)).all() or (len(weight) and not weight.any()):
        raise ValueError("weights must be finite numbers, not negative and not all zero: 1 / error^2, say.")
    used["weight"] = weight / weight.mean()
    _enough(law, used, excluded, fixed)
    notes = [*_excluded_notes(excluded), *suspect.notes(law, table, used, "C" in names, fixed)]
    if law.along_curves:
        order = np.lexsort((used["step"], used["group"]))
    else:
        order = np.lexsort([used[c] for c in used if c != "group"][::-1])
    return Rows(used.iloc[order], names, convention, excluded, tuple(notes))


def _column_names(law: Law, table: pd.DataFrame, columns: Mapping[str, str]) -> dict[str, str]:
    wanted = list(dict.fromkeys([*law.columns, law.target, "C"]))
    unknown = set(columns) - set(wanted)
    if unknown:
        raise ValueError(f"columns.{min(unknown)}: {law.name} reads {', '.join(wanted)} only.")
    default = {"loss": "eval_loss"} if "eval_loss" in table and not law.along_curves else {}
    names = {ours: columns.get(ours, default.get(ours, ours)) for ours in wanted}
    if "C" not in columns and "C" not in table and "C" not in law.columns:
        del names["C"]  # only held-out fits and allocation ask for it
    for ours, theirs in names.items():
        if theirs not in table:
            raise ValueError(
                f"The table has no column {theirs!r} for {law.name}'s {ours}; it has {', '.join(map(str, table))}. "
                f"Name it: columns.{ours}=<column>."
            )
    return names


def checked(law: Law, table: pd.DataFrame) -> pd.DataFrame:
    """`table` with the law's columns as numbers of their domain. ValueError as `prepare` raises."""
    good = {column.name: _values(table, column.name, column.name, column.domain) for column in law.inputs}
    law.check(pd.DataFrame(good))
    return table.assign(**good)


def _weights(table: pd.DataFrame, weights: str | np.ndarray | None) -> np.ndarray:
    if weights is None:
        return np.ones(len(table))
    if isinstance(weights, str):
        if weights not in table:
            raise ValueError(f"weights={weights}: the table has no such column; it has {', '.join(map(str, table))}.")
        weights = pd.to_numeric(table[weights], errors="coerce").to_numpy(float)
    weights = np.asarray(weights, float)
    if weights.shape != (len(table),):
        raise ValueError(f"weights has shape {weights.shape}: it must be one number per row of the {len(table)}.")
    return weights


def _completed(table: pd.DataFrame, of_final_losses: bool) -> tuple[pd.DataFrame, dict[str, int]]:
    if "status" not in table:
        return table, {}
    why = table["status"].fillna("unfinished")
    if of_final_losses:
        early = stopped(table)
        why = early.where(early.notna(), why)
    excluded = {str(name): int(count) for name, count in why[why != "completed"].value_counts().items()}
    return table[why == "completed"], excluded


def _one_kind(table: pd.DataFrame, loss: str) -> None:
    for column, what in _KINDS.items():
        # Bits per byte compare across tokenizers: that is what they are for.
        if column not in table or (what == "tokenizers" and "bits_per_byte" in loss):
            continue
        groups = table[column].fillna("unknown").value_counts()
        if len(groups) > 1:
            listed = ", ".join(f"{name} ({count} runs)" for name, count in groups.items())
            raise ValueError(
                f"The runs used {len(groups)} different {what}, which do not compare: {column} is {listed}. "
                f"{_FIX.get(column, _OTHER_FIX)}"
            )


_WANTED: dict[str, tuple[Callable[[pd.Series], pd.Series], str]] = {
    "positive": (lambda x: np.isfinite(x) & (x > 0), "a positive number"),
    "nonnegative": (lambda x: np.isfinite(x) & (x >= 0), "zero or a positive number"),
    "fraction": (lambda x: np.isfinite(x) & (x >= 0) & (x <= 1), "a number from 0 to 1"),
    "any": (lambda x: np.isfinite(x), "a finite number"),
    "label": (lambda x: x.notna(), "given"),
}


def _values(table: pd.DataFrame, ours: str, theirs: str, domain: str) -> pd.Series:
    good, wanted = _WANTED[domain]
    if domain == "label":
        values = table[theirs].where(table[theirs].isna(), table[theirs].astype(str))
    else:
        values = pd.to_numeric(table[theirs], errors="coerce").astype(float)
    bad = ~good(values)
    if bad.any():
        first = table.index[bad.to_numpy()][0]
        run = f" (run {table.loc[first, 'run_id']})" if "run_id" in table else ""
        raise ValueError(
            f"{ours} (column {theirs}) must be {wanted} in every row; {int(bad.sum())} of {len(values)} are "
            f"not, the first is row {first}{run}: {_shown(table.loc[first, theirs])}. Remove those rows or map "
            f"{ours} to another column."
        )
    return values


def _convention(table: pd.DataFrame, used: pd.DataFrame, names: Mapping[str, str]) -> dict[str, str]:
    records = "flops_per_token" in table and "N_total" in table
    size = f"as counted by column {names.get('N', 'N')}"
    if records and names.get("N") in ("N", "N_total"):
        size = {
            "N": "parameters without embedding and output head",
            "N_total": "all parameters, embedding and output head included",
        }[names["N"]]
    target = next(reversed([name for name in names if name != "C"]))
    if "C" not in names:
        flops = "6 N D"
    elif records:
        flops = "exact FLOPs of the model's shape"
    elif {"N", "D"} <= set(used) and np.allclose(used["C"], 6.0 * used["N"] * used["D"], rtol=1e-3):
        flops = "6 N D"
    else:
        flops = f"as counted by column {names['C']}"
    said = {"N": size, "D": "training tokens", "C": flops, target: names[target]}
    return {name: words for name, words in said.items() if name in used or (name == "C" and {"N", "D"} <= set(used))}


def _enough(law: Law, used: pd.DataFrame, excluded: Mapping[str, int], fixed: Set[str]) -> None:
    parameters = len(law.names) - len(fixed)
    used = used[used["weight"] > 0]
    settings = len(used[list(law.columns)].drop_duplicates())
    left_out = f" ({sum(excluded.values())} more {_why_left_out(excluded)})" if excluded else ""
    if settings < parameters or len(used) <= parameters:
        raise ValueError(
            f"{law.name} has {parameters} parameters to fit (of {', '.join(law.names)}) and the table has "
            f"{len(used)} rows at {settings} distinct settings of {', '.join(law.columns)}{left_out}: at least "
            f"{parameters} settings and one row more are needed, and twice as many for intervals that mean something. "
            "Train more points, or fit a smaller law."
        )
    if used[law.target].nunique() == 1:
        raise ValueError(
            f"{law.target} is {_short(used[law.target].iloc[0])} in all {len(used)} rows: there is nothing to fit."
        )
    for column, about in law.columns.items():
        lost = [name for name in about.tells if name not in fixed]
        if lost and used[column].nunique() == 1:
            raise ValueError(
                f"Column {column} is {_short(used[column].iloc[0])} in all {len(used)} rows: {' and '.join(lost)} of "
                f"{law.name} cannot be told from the rest. Add runs at another {column}, or fit a law without it."
            )


def _why_left_out(excluded: Mapping[str, int]) -> str:
    early = [name in STOPPED for name in excluded]
    words = ["did not complete"] * (not all(early)) + ["stopped before their budget"] * any(early)
    return " or ".join(words)


def _excluded_notes(excluded: Mapping[str, int]) -> list[str]:
    failed = {status: count for status, count in excluded.items() if status not in STOPPED}
    listed = ", ".join(f"{count} {status}" for status, count in failed.items())
    notes = [f"{sum(failed.values())} runs that did not complete are left out: {listed}."] if failed else []
    early = {why: count for why, count in excluded.items() if why in STOPPED}
    return notes + [f"{told_stopped(early)}: not fitted, as the last loss is not that of the budget."] * bool(early)


def _shown(value: object) -> str:
    return repr(value.item() if isinstance(value, np.generic) else value)


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
