"""A fit as a file, and back: fit.json holds all that `fulcrum predict`, `allocate` and `plan-next` need.

The numbers a reader wants come first; `state` at the end holds the fitted rows, the optimum and the replicates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from scaling import diagnose, identify, laws, losses
from scaling.fit import Fit, problem_of
from scaling.laws.law import Law, Prior
from scaling.losses import Loss
from scaling.rows import Rows

_PROFILED = 2_000  # rows up to which a file has the profiles of all parameters


def law_from(spec: Mapping[str, Any]) -> Law:
    """The law of a configuration: `_target_`, a class of `scaling.laws`, and its fields."""
    hint = "no such law. `fulcrum fit --list` shows those that exist."
    law: Law = _made("law", spec, laws, Law, hint)
    return law


def loss_from(spec: Mapping[str, Any]) -> Loss:
    """The loss of a configuration: `_target_`, a class of `scaling.losses`, and its fields."""
    loss: Loss = _made("loss", spec, losses, Loss, "one of Huber, LeastSquares, Absolute, StudentT.")
    return loss


def _made(option: str, spec: Mapping[str, Any], module: ModuleType, base: type, hint: str) -> Any:
    """An instance of the class of `module` that `_target_` names, of kind `base`. ValueError with `hint` where there is
    none."""
    name = str(spec["_target_"]).removeprefix(f"{module.__name__}.")
    kind = getattr(module, name, None)
    if not (isinstance(kind, type) and issubclass(kind, base) and kind is not base):
        raise ValueError(f"{option}._target_={spec['_target_']}: {hint}")
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in spec.items() if k != "_target_"}
    try:
        return kind(**fields)
    except TypeError as error:
        raise ValueError(f"{option}: {name} cannot be made from {fields or 'no fields'}: {error}.") from None


def numbers(fit: Fit, level: float = 0.9, shapes: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Everything of the fit, as plain numbers and words. `shapes`: how the models were made (`next_runs.shapes`)."""
    drawn, problem = fit.free_replicates is not None, fit.problem
    return {
        "law": fit.law.name,
        "formula": fit.law.formula,
        "source": fit.law.source,
        "params": fit.params,
        "fixed": dict(problem.fixed),
        "priors": {name: asdict(prior) for name, prior in problem.priors.items()},
        "interval": {
            "level": level,
            "kind": f"percentile bootstrap ({fit.bootstrap_kind})" if drawn else "delta method",
            **fit.intervals(level, "bootstrap" if drawn else "delta"),
        },
        "standard_errors": fit.standard_errors,
        "replicates": 0 if fit.free_replicates is None else len(fit.free_replicates),
        "objective": fit.objective,
        "loss": repr(problem.loss),
        "residuals": problem.residuals,
        "starts": fit.starts,
        "seed": fit.seed,
        "agreement": fit.agreement,
        "minima": fit.minima,
        "converged": fit.converged,
        "converged_share": fit.converged_share,
        "gradient_norm": fit.gradient_norm,
        "condition_number": identify.condition_number(fit),
        "rows": len(fit.rows.table),
        "residual_rms": fit.residual_rms,
        "residual_max": fit.residual_max,
        "r_squared": fit.r_squared,
        "at_bound": fit.at_bound,
        "unidentified": fit.unidentified,
        "profiles": _profiles(fit, level),
        "residual_of_row": fit.residuals.tolist(),
        "warnings": fit.warnings,
        "diagnosis": diagnose.numbers(fit),
        "columns": fit.rows.columns,
        "convention": fit.rows.convention,
        "excluded": fit.rows.excluded,
        "data_hash": fit.rows.fingerprint,
        "versions": {name: version(name) for name in ("fulcrum", "numpy", "scipy", "pandas")},
        "state": {
            "law": fit.law.spec(),
            "loss": {"_target_": type(problem.loss).__name__, **asdict(problem.loss)},  # type: ignore[call-overload]
            "table": {name: values.tolist() for name, values in fit.rows.table.items()},
            "index": [row if isinstance(row, int | str) else str(row) for row in fit.rows.table.index.tolist()],
            "notes": list(fit.rows.notes),
            "noise": problem.noise,
            "free": fit.free.tolist(),
            "spread": fit.spread.tolist(),
            "replicates": None if fit.free_replicates is None else fit.free_replicates.tolist(),
            "bootstrap_kind": fit.bootstrap_kind,
            "shapes": list(shapes),
        },
    }


def _profiles(fit: Fit, level: float) -> dict[str, list[float]]:
    """The ends of the profile interval of every free parameter, infinite where it is open; none for curves and for
    many rows, where they are long work (`fit.profile` gives them one by one)."""
    if fit.law.along_curves or len(fit.rows.table) > _PROFILED:
        return {}
    found = {name: fit.profile(name, level) for name in fit.standard_errors}
    return {name: [profile.low, profile.high] for name, profile in found.items()}


def read(path: str | Path) -> tuple[Fit, dict[str, Any]]:
    """The fit in a fit.json, and the whole file. ValueError where it is none."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"fit={path}: no such file. `fulcrum fit` writes fit.json beside the runs, or here for a table."
        )
    try:
        kept = json.loads(path.read_text())
        return fit_from(kept), kept
    except (KeyError, json.JSONDecodeError, TypeError) as error:
        raise ValueError(
            f"fit={path} is not a fit.json of this version ({error!r}): run `fulcrum fit` again."
        ) from None


def fit_from(kept: Mapping[str, Any]) -> Fit:
    """The Fit that `numbers` was made from."""
    state = kept["state"]
    law, loss = law_from(state["law"]), loss_from(state["loss"])
    rows = Rows(
        pd.DataFrame(state["table"], index=state["index"]),
        kept["columns"],
        kept["convention"],
        kept["excluded"],
        tuple(state["notes"]),
    )
    problem = problem_of(law, rows, loss, kept["residuals"], kept["fixed"])
    priors = {name: Prior(**prior) for name, prior in kept["priors"].items()}
    problem = replace(problem, priors=priors, noise=state["noise"])
    drawn = state["replicates"]
    plain = {
        name: kept[name]
        for name in ("params", "objective", "agreement", "minima", "gradient_norm", "converged", "converged_share")
    }
    return Fit(
        law=law, rows=rows, problem=problem, free=np.array(state["free"]), spread=np.array(state["spread"]),
        starts=kept["starts"], seed=kept["seed"], free_replicates=None if drawn is None else np.array(drawn),
        bootstrap_kind=state["bootstrap_kind"], **plain,
    )  # fmt: skip
