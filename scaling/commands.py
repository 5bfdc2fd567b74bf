"""`fulcrum fit`, `fulcrum report` and `fulcrum runs`: configuration in, tables on the terminal and files out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data.records import load_runs, write_json
from scaling.wording import RUN_COLUMNS, between, cell, choices, three

if TYPE_CHECKING:
    import pandas as pd

    from scaling.fit import Fit, Holdout


def fit_command(cfg: DictConfig) -> None:
    """Fits `cfg.law` to the runs below `cfg.runs` or to the rows of `cfg.table`; prints the law and writes fit.json."""
    from scaling.fit import Huber, fit

    if (cfg.runs is None) == (cfg.table is None):
        raise ValueError("fit needs either runs=<folder of runs> or table=<CSV, JSONL or Parquet file>.")
    source = Path(cfg.runs if cfg.table is None else cfg.table)
    table = _filtered(load_runs(source), cfg.filter)
    columns = {ours: theirs for ours, theirs in cfg.columns.items() if theirs is not None}
    fitted = fit(instantiate(cfg.law), table, Huber(cfg.huber), cfg.starts, cfg.seed, columns)
    if cfg.bootstrap:
        fitted = fitted.bootstrap(cfg.bootstrap, seed=cfg.seed)
    held_out: Holdout | str | None = None
    if cfg.holdout is not None:
        try:
            held_out = fitted.holdout(share=cfg.holdout)
        except ValueError as error:  # too few rows for the test is no reason to hide the fit
            held_out = str(error)
    out = Path(cfg.out) if cfg.out else (source if cfg.table is None else Path()) / "fit.json"
    _print_fit(fitted, held_out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        out,
        fitted.to_json() | {"holdout": _holdout_numbers(held_out), "source_file": str(source), "command": _command()},
    )
    print(f"Written to {out}")


def report_command(cfg: DictConfig) -> None:
    """Writes the report of the runs below `cfg.runs` and prints where it is and the law that it found."""
    from scaling.report import Settings, write_report

    if cfg.runs is None:
        raise ValueError("report needs runs=<folder of runs>, as in runs=runs/quickstart.")
    settings = Settings(cfg.huber, cfg.starts, cfg.bootstrap, cfg.seed, cfg.holdout)
    sections = None if cfg.sections is None else list(cfg.sections)
    report = write_report(Path(cfg.runs), sections, settings, Path(cfg.out) if cfg.out else None, _command())
    if report.line:
        print(report.line)
    print(f"Report: {report.path}")


def runs_command(cfg: DictConfig) -> None:
    """Prints the runs below `cfg.runs`, filtered and sorted, as a table, CSV or JSON."""
    if cfg.runs is None:
        raise ValueError("runs needs runs=<folder of runs>, as in runs=runs/quickstart.")
    if cfg.format not in ("table", "csv", "json"):
        raise ValueError(f"format={cfg.format}: one of table, csv, json.")
    runs = _filtered(load_runs(cfg.runs), cfg.filter)
    if cfg.sort:
        name = cfg.sort.removeprefix("-")
        runs = runs.sort_values(_known(runs, "sort", [name]), ascending=not cfg.sort.startswith("-"))
    if cfg.columns is not None:
        shown = _known(runs, "columns", list(cfg.columns))
    else:
        results = [name for name in RUN_COLUMNS if name in runs and runs[name].notna().any()]
        shown = [name for name in ("run_id", "status", *results, *choices(runs)) if name in runs]
    if cfg.format == "csv":
        print(runs[shown].to_csv(index=False), end="")
    elif cfg.format == "json":
        print(runs[shown].to_json(orient="records", indent=1))
    else:
        _print_runs(runs[shown])


def _filtered(runs: pd.DataFrame, condition: str | None) -> pd.DataFrame:
    if not condition:
        return runs
    try:
        kept = runs.query(condition)
    except Exception as error:  # pandas raises many kinds, none of which names the option
        names = ", ".join(f"`{name}`" if "." in str(name) else str(name) for name in runs)
        raise ValueError(f"filter={condition!r} cannot be evaluated ({error}). The columns are {names}.") from None
    if kept.empty:
        raise ValueError(f"filter={condition!r} leaves none of the {len(runs)} rows.")
    return kept


def _known(runs: pd.DataFrame, option: str, names: list[str]) -> list[str]:
    unknown = [name for name in names if name not in runs]
    if unknown:
        raise ValueError(f"{option}={unknown[0]}: no such column; there are {', '.join(map(str, runs))}.")
    return names


def _command() -> str:
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _holdout_numbers(held_out: Holdout | str | None) -> Any:
    return held_out if held_out is None or isinstance(held_out, str) else held_out.to_json()


def _print_fit(fitted: Fit, held_out: Holdout | str | None) -> None:
    console = Console(highlight=False, width=100)
    rows = fitted.rows
    title = f"{fitted.law.name}: {fitted.law.formula}"
    table = Table("parameter", title=escape(title), title_justify="left", title_style="bold")
    table.add_column("value", justify="right")
    drawn = fitted.free_replicates is not None
    intervals = fitted.intervals() if drawn else {}
    if drawn:
        table.add_column("90 % interval", justify="right")
    table.add_column("meaning")
    for p in fitted.law.parameters:
        interval = [between(*intervals[p.name], three)] if drawn else []
        table.add_row(p.name, f"{fitted.params[p.name]:.5g}", *interval, p.meaning)
    console.print(table)
    counted = "; ".join(f"{name}: {words}" for name, words in rows.convention.items())
    print(f"{len(rows.table)} rows. {counted}.")
    print(
        f"Objective {fitted.objective:.6g}, reached by {fitted.agreement:.0%} of {fitted.starts} starts; residuals "
        f"{fitted.residual_rms:.2%} (rms), {fitted.residual_max:.2%} at worst."
    )
    if isinstance(held_out, str):
        print(f"Nothing could be held out: {held_out}")
    elif held_out is not None:
        print(
            f"Fitted without its {len(held_out.table)} rows of largest {held_out.by}, the law predicts them with an "
            f"error of {held_out.typical:.2%} (rms), {held_out.worst:.2%} at worst."
        )
    for warning in fitted.warnings:
        console.print(f"[yellow]Note:[/] {escape(warning)}", soft_wrap=True)


def _print_runs(runs: pd.DataFrame) -> None:
    from pandas.api.types import is_numeric_dtype

    table = Table()
    for name in map(str, runs):
        table.add_column(RUN_COLUMNS.get(name, (name,))[0], justify="right" if is_numeric_dtype(runs[name]) else "left")
    for _, run in runs.iterrows():
        shown = [cell(run[n], *RUN_COLUMNS[n][1:]) if n in RUN_COLUMNS else cell(run[n]) for n in runs]
        table.add_row(*(escape(text) for text, _ in shown))
    Console(width=400).print(table)  # as wide as it needs to be: a number cut off helps nobody
