"""`fulcrum plan-next`: from a fit to a file of points that `fulcrum train` runs.

runs --shapes--> what can be trained, with its overrides --design.plan_next--> runs --points--> next.yaml
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import pandas as pd
import yaml

from scaling.design import Design
from train.shape import Shape

_LARGER = 10.0  # named models up to this many times the largest that was run are candidates
_OWN = (
    "total_tokens=",
    "seed=",
    "stop_when",
    "hydra.",
    "hydra/",
    "points=",
    "dry_run=",
)  # overrides that a new run does not inherit


def shapes(runs: pd.DataFrame, column: str = "N") -> list[dict[str, Any]]:
    """One entry per size in `runs` (records of Fulcrum): N as `column` counts it, flops_per_token, and the overrides
    that train it again; with what a shape of another size needs to be priced. [] for tables that do not say."""
    needed = {column, "flops_per_token", "overrides", "vocab_size", "sequence_length"}
    if not needed <= set(runs):
        return []
    found = []
    for _, group in runs.dropna(subset=[column, "flops_per_token"]).groupby(column):
        run = group.iloc[0]
        found.append(
            {
                "N": float(run[column]),
                "counted_as": column,
                "flops_per_token": float(group["flops_per_token"].median()),
                "overrides": [text for text in run["overrides"] if not text.startswith(_OWN)],
                "vocab_size": int(run["vocab_size"]),
                "sequence_length": int(run["sequence_length"]),
            }
        )
    return found


def sizes(known: Sequence[Mapping[str, Any]], models: Sequence[str] | None = None) -> pd.DataFrame:
    """What can be trained next: the sizes that were run, and the models of conf/model up to ten times the largest; or
    only those called `models`. Columns N, flops_per_token and overrides."""
    if not known:
        raise ValueError(
            "plan-next needs to know how models are made and what a token costs on them: this fit is of a table that "
            "does not say. Fit recorded runs (runs=<folder>)."
        )
    base = max(known, key=lambda shape: shape["N"])
    inherited = [text for text in base["overrides"] if not text.startswith(("model=", "model."))]
    named = {}
    for name, fields in named_models().items():
        shape = Shape(**fields, vocab_size=base["vocab_size"])
        named[name] = {
            "N": float(shape.N_total if base["counted_as"] == "N_total" else shape.N),
            "flops_per_token": shape.flops_per_token(base["sequence_length"]),
            "overrides": [*inherited, f"model={name}"],
        }
    if models is not None:
        unknown = [name for name in models if name not in named]
        if unknown:
            raise ValueError(f"models={unknown[0]}: no such model; there are {', '.join(named)}.")
        rows = [named[name] for name in models]
    else:
        ran = [shape["N"] for shape in known]
        more = [
            row
            for row in named.values()
            if min(ran) <= row["N"] <= _LARGER * max(ran) and all(abs(row["N"] / n - 1) > 0.01 for n in ran)
        ]
        rows = [*known, *more]  # type: ignore[list-item]
    return pd.DataFrame(rows)[["N", "flops_per_token", "overrides"]].sort_values("N").reset_index(drop=True)


def named_models() -> dict[str, dict[str, Any]]:
    """The sizes in conf/model by name, as fields of a Shape."""
    folder = files("conf") / "model"
    common = yaml.safe_load((folder / "transformer.yaml").read_text())
    found = {}
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        content = yaml.safe_load(file.read_text())
        if file.name.endswith(".yaml") and content.pop("defaults", None) == ["transformer"]:
            merged = {**common, **content}
            found[file.name.removesuffix(".yaml")] = {
                k: v for k, v in merged.items() if k not in ("_target_", "vocab_size")
            }
    return found


def overrides(run: pd.Series) -> list[str]:
    """What trains a run of a design."""
    return [*run["overrides"], f"total_tokens={run['D']:.4g}"]


def points_file(design: Design, command: str) -> str:
    """The YAML text of the runs: one list of overrides each."""
    points = [overrides(run) for _, run in design.runs.iterrows()]
    head = (
        f"# {len(points)} runs, {design.flops:.3g} FLOPs together, by: {command}\n# fulcrum train points=<this file>\n"
    )
    return head + yaml.safe_dump(points, default_flow_style=None, width=110)
