"""`fulcrum fit` and `fulcrum predict`: configuration in, tables on the terminal and files out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data.files import write_atomic, write_json
from data.records import load_curves, load_runs
from scaling.commands import called, filtered
from scaling.wording import between, minima, three

if TYPE_CHECKING:
    import pandas as pd

    from scaling.choose import Holdout
    from scaling.fit import Fit
    from scaling.laws.law import Law

_SHOWN = 40  # rows of a prediction on the terminal


def fit_command(cfg: DictConfig) -> None:
    """Fits `cfg.law` to the runs below `cfg.runs` or to the rows of `cfg.table`; prints the law and writes fit.json."""
    from scaling import keep, next_runs
    from scaling.fit import fit
    from scaling.uncertainty import KINDS

    if (cfg.runs is None) == (cfg.table is None):
        raise ValueError("fit needs either runs=<folder of runs> or table=<CSV, JSONL or Parquet file>.")
    source = _existing(cfg.runs, "runs") if cfg.table is None else _existing(cfg.table, "table")
    law, loss = keep.law_from(_plain(cfg, "law")), keep.loss_from(_plain(cfg, "loss"))
    if cfg.resample is not None and cfg.resample not in KINDS:
        raise ValueError(f"resample={cfg.resample}: one of {', '.join(KINDS)}, or null.")
    if cfg.holdout is not None and not 0 < cfg.holdout < 1:
        raise ValueError(f"holdout={cfg.holdout} must lie between 0 and 1: the share of rows held out; or null.")
    table = filtered(load_curves(source, whole=True) if law.along_curves else load_runs(source), cfg.filter)
    settings: dict[str, Any] = {
        "loss": loss, "starts": cfg.starts, "seed": cfg.seed, "weights": cfg.weights, "residuals": cfg.residuals,
        "fixed": _numbers(cfg, "fixed"), "priors": _priors(cfg, law),
        "columns": {ours: theirs for ours, theirs in cfg.columns.items() if theirs is not None},
    }  # fmt: skip
    if cfg.each is not None:
        _fit_each(cfg, law, table, settings)
        return
    fitted = fit(law, table, **settings)
    by = cfg.by or _default_axis(fitted)
    if by not in fitted.rows.table:
        raise ValueError(f"by={by}: the fit has the columns {', '.join(fitted.rows.table)}.")
    if cfg.bootstrap:
        fitted = fitted.bootstrap(cfg.bootstrap, cfg.seed, cfg.resample)
    held_out: Holdout | str | None = None
    if cfg.holdout is not None:
        try:
            held_out = fitted.holdout(by, cfg.holdout)
        except ValueError as error:  # too few rows for the test is no reason to hide the fit
            held_out = str(error)
    out = Path(cfg.out) if cfg.out else (source if cfg.table is None else Path()) / "fit.json"
    _print_fit(fitted, held_out)
    out.parent.mkdir(parents=True, exist_ok=True)
    kept = keep.numbers(
        fitted, shapes=[] if law.along_curves else next_runs.shapes(table, fitted.rows.columns.get("N", "N"))
    )
    about = {"holdout": holdout_numbers(held_out), "source_file": str(source), "command": called()}
    write_json(out, about | kept)
    print(f"Written to {out}")


def _fit_each(cfg: DictConfig, law: Law, table: pd.DataFrame, settings: dict[str, Any]) -> None:
    """One fit for every value of a column: a table on the terminal, one file each in a folder."""
    from scaling import keep
    from scaling.each import fit_each, summary

    fits = fit_each(law, table, cfg.each, **settings)
    if cfg.bootstrap:
        fits = {group: each.bootstrap(cfg.bootstrap, cfg.seed, cfg.resample) for group, each in fits.items()}
    shown = Table(cfg.each, *law.names, "rows", "residuals (rms)", "warnings")
    for group, row in summary(fits).iterrows():
        cells = []
        for name in law.names:
            known = f" ({between(row[f'{name}_low'], row[f'{name}_high'], three)})" if f"{name}_low" in row else ""
            cells.append(f"{row[name]:.4g}{known}")
        shown.add_row(str(group), *cells, f"{row['rows']:.0f}", f"{row['residual_rms']:.3g}", f"{row['warnings']:.0f}")
    Console(highlight=False, width=140).print(shown)
    folder = Path(cfg.out or "fits")
    folder.mkdir(parents=True, exist_ok=True)
    for group, each in fits.items():
        write_json(folder / f"{group}.json", {"command": called(), cfg.each: group} | keep.numbers(each))
    print(f"Written to {folder}: one file for each of {', '.join(fits)}")


def predict_command(cfg: DictConfig) -> None:
    """Prints what the law in `cfg.fit` predicts at the given columns, with intervals for the law and for one run."""
    import numpy as np
    import pandas as pd

    from scaling import keep
    from scaling.rows import checked

    fitted, _ = keep.read(given(cfg, "fit", "fit.json"))
    at = {str(name): value for name, value in cfg.at.items()}
    unknown = [name for name in at if name not in fitted.law.columns]
    if unknown:
        raise ValueError(f"{unknown[0]}={at[unknown[0]]}: {fitted.law.name} reads {', '.join(fitted.law.columns)}.")
    if cfg.table is not None:
        table = load_runs(_existing(cfg.table, "table")).assign(**at)
    else:
        values = {name: list(v) if OmegaConf.is_list(v) else [v] for name, v in at.items()}
        table = pd.DataFrame([dict(zip(values, row, strict=True)) for row in product(*values.values())])
    missing = [name for name in fitted.law.columns if name not in table]
    if missing:
        raise ValueError(
            f"{fitted.law.name} predicts {fitted.law.target} from {', '.join(fitted.law.columns)}: give "
            f"{missing[0]}=<number>, or table=<file with these columns>."
        )
    table = checked(fitted.law, table)
    method: Literal["delta", "bootstrap"] = "delta" if fitted.free_replicates is None else "bootstrap"
    target = fitted.law.target
    law = fitted.predict(table, cfg.level, "law", method)
    run = fitted.predict(table, cfg.level, "run", method)
    result = table[list(fitted.law.columns)].assign(
        **{target: law[target], "low": law["low"], "high": law["high"], "run_low": run["low"], "run_high": run["high"]}
    )
    if cfg.out:
        write_atomic(Path(cfg.out), result.to_csv(index=False))
    shown = Table(*fitted.law.columns, target, f"{cfg.level:.0%} of the law", f"{cfg.level:.0%} of one run")
    for k in np.unique(np.linspace(0, len(result) - 1, min(len(result), _SHOWN)).round().astype(int)):
        row = result.iloc[k]
        columns = [f"{row[c]:.4g}" if not isinstance(row[c], str) else row[c] for c in fitted.law.columns]
        ends = [between(row[a], row[b], _digits) for a, b in (("low", "high"), ("run_low", "run_high"))]
        shown.add_row(*columns, _digits(row[target]), *ends)
    Console(highlight=False, width=120).print(shown)
    if len(result) > _SHOWN:
        print(f"{_SHOWN} of {len(result)} rows: give out=<file.csv> to keep them all.")
    _print_range(fitted, table)


def list_laws() -> None:
    """Prints every law with its formula, columns, parameters, source and published constants."""
    import yaml

    from scaling import keep

    console = Console(highlight=False, soft_wrap=True)
    for file in sorted((files("conf") / "law").iterdir(), key=lambda file: file.name):
        spec = yaml.safe_load(file.read_text())
        needs = [name for name, value in spec.items() if value == "???"]
        law = keep.law_from({k: ["a", "b"] if v == "???" else v for k, v in spec.items()})
        _print_law(console, file.name.removesuffix(".yaml"), law, needs)


def _print_law(console: Console, name: str, law: Law, needs: Sequence[str]) -> None:
    console.print(f"[bold]law={name}[/]  {escape(law.name)}")
    console.print(f"  {escape(law.formula)}")
    columns = ", ".join(f"{column.name} ({column.meaning})" for column in law.inputs)
    console.print(f"  [dim]predicts[/] {law.target} [dim]from[/] {escape(columns)}")
    if needs:
        console.print(f"  [dim]give[/]     {', '.join(f'law.{name}=[...]' for name in needs)} (shown for a and b)")
    console.print(f"  [dim]fits[/]     {', '.join(law.names)}")
    console.print(f"  [dim]source[/]   {escape(law.source)}")
    for reference in law.references:
        constants = ", ".join(f"{k} {v:.6g}" for k, v in reference.params.items())
        doubt = "; RECALLED, not confirmed" if reference.known_from == "recalled" else f"; {reference.known_from}"
        console.print(f"  [dim]values[/]   {constants} ({escape(reference.source)}{doubt})")
    console.print()


def _print_fit(fitted: Fit, held_out: Holdout | str | None) -> None:
    import numpy as np

    console = Console(highlight=False, width=110)
    rows, drawn = fitted.rows, fitted.free_replicates is not None
    table = Table("parameter", title=escape(f"{fitted.law.name}: {fitted.law.formula}"), title_justify="left",
                  title_style="bold")  # fmt: skip
    table.add_column("value", justify="right")
    table.add_column("90 % interval" if drawn else "90 % (delta method)", justify="right")
    table.add_column("meaning")
    intervals = fitted.intervals(method="bootstrap" if drawn else "delta")
    for p in fitted.law.parameters:
        known = between(*intervals[p.name], three) if p.name in intervals else "fixed"
        table.add_row(p.name, f"{fitted.params[p.name]:.5g}", known, p.meaning)
    console.print(table)
    counted = "; ".join(f"{name}: {words}" for name, words in rows.convention.items())
    print(f"{len(rows.table)} rows. {counted}.")
    logs = fitted.problem.residuals == "log"
    size = "{:.2%}" if logs else "{:.4g}"
    rms, most = (float(np.expm1(x)) if logs else x for x in (fitted.residual_rms, fitted.residual_max))
    print(
        f"Objective {fitted.objective:.6g}, reached by {fitted.agreement:.0%} of {fitted.starts} starts, "
        f"{minima(len(fitted.minima))}; residuals {size.format(rms)} (rms), {size.format(most)} at worst."
    )
    if len(fitted.minima) > 1:
        for minimum in fitted.minima[:4]:
            where = ", ".join(f"{name} {value:.4g}" for name, value in minimum["params"].items())
            print(f"  minimum {minimum['objective']:.6g} ({minimum['share']:.0%} of starts): {where}")
    if isinstance(held_out, str):
        print(f"Nothing could be held out: {held_out}")
    elif held_out is not None:
        print(
            f"Fitted without its {len(held_out.table)} rows of largest {held_out.by}, the law predicts them with an "
            f"error of {size.format(held_out.typical)} (rms), {size.format(held_out.worst)} at worst."
        )
    for warning in fitted.warnings:
        console.print(f"[yellow]Note:[/] {escape(warning)}", soft_wrap=True)


def _print_range(fitted: Fit, table: pd.DataFrame) -> None:
    """Says where the law is asked beyond the rows it was fitted to."""
    for column in fitted.law.inputs:
        if column.domain == "label":
            continue
        ran, asked = fitted.rows.table[column.name], table[column.name].astype(float)
        if asked.max() > ran.max() * (1 + 1e-9) or asked.min() < ran.min() * (1 - 1e-9):
            print(
                f"Note: {column.name} was {ran.min():.3g} to {ran.max():.3g} in the fitted rows; beyond that the law "
                "is an extrapolation, and its interval holds only if its form does."
            )


def holdout_numbers(held_out: Holdout | str | None) -> Any:
    """The held-out test as plain numbers, or why there is none."""
    return held_out if held_out is None or isinstance(held_out, str) else held_out.to_json()


def _default_axis(fitted: Fit) -> str:
    """What a held-out test goes by: compute where it is known, else the law's first size."""
    table = fitted.rows.table
    return next(name for name in ("C", "D", "N", "step", *fitted.law.columns) if name in table)


def _plain(cfg: DictConfig, branch: str) -> dict[str, Any]:
    missing = sorted(OmegaConf.missing_keys(cfg[branch]))
    if missing:
        name = missing[0].removeprefix(f"{branch}.")
        raise ValueError(f"{branch}.{name} is not given: {branch}.{name}=[<name>,<name>].")
    return OmegaConf.to_container(cfg[branch], resolve=True)  # type: ignore[return-value]


def _numbers(cfg: DictConfig, branch: str) -> dict[str, float]:
    found = {}
    for name, value in cfg[branch].items():
        if value is not None:
            if not isinstance(value, int | float):
                raise ValueError(f"{branch}.{name}={value} must be a number.")
            found[str(name)] = float(value)
    return found


def _priors(cfg: DictConfig, law: Law) -> Mapping[str, Any]:
    """The law's own and the given ones; none at all where the user said priors=null."""
    from scaling.fit import Prior

    if cfg.priors is None:
        return {}
    found = {name: prior for name, prior in law.priors if name not in cfg.fixed}
    for name, value in cfg.priors.items():
        if not OmegaConf.is_list(value) or len(value) != 2:
            raise ValueError(f"priors.{name}={value}: give [mean, standard deviation].")
        found[str(name)] = Prior(*map(float, value))
    return found


def _existing(path: str, option: str) -> Path:
    if not Path(path).exists():
        raise ValueError(f"{option}={path}: no such {'folder' if option == 'runs' else 'file'}.")
    return Path(path)


def given(cfg: DictConfig, name: str, example: str) -> Any:
    """An option that must be given. ValueError with an example where it is not."""
    if cfg[name] is None:
        raise ValueError(f"{name}=<...> is needed, as in {name}={example}.")
    return cfg[name]


def _digits(value: float) -> str:
    return f"{value:#.5g}".rstrip(".")
