"""`fulcrum report` and `fulcrum runs`: configuration in, tables on the terminal and files out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data.records import load_runs
from scaling.wording import RUN_COLUMNS, cell, choices

if TYPE_CHECKING:
    import pandas as pd


def report_command(cfg: DictConfig) -> None:
    """Writes the report of the runs below `cfg.runs` and prints where it is and the law that it found."""
    from scaling.report import Settings, write_report

    if cfg.runs is None:
        raise ValueError("report needs runs=<folder of runs>, as in runs=runs/quickstart.")
    settings = Settings(cfg.huber, cfg.starts, cfg.bootstrap, cfg.seed, cfg.holdout)
    sections = None if cfg.sections is None else list(cfg.sections)
    report = write_report(Path(cfg.runs), sections, settings, Path(cfg.out) if cfg.out else None, called())
    if report.line:
        print(report.line)
    print(f"Report: {report.path}")


def runs_command(cfg: DictConfig) -> None:
    """Prints the runs below `cfg.runs`, filtered and sorted, as a table, CSV or JSON."""
    if cfg.runs is None:
        raise ValueError("runs needs runs=<folder of runs>, as in runs=runs/quickstart.")
    if cfg.format not in ("table", "csv", "json"):
        raise ValueError(f"format={cfg.format}: one of table, csv, json.")
    runs = filtered(load_runs(cfg.runs), cfg.filter)
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


def filtered(runs: pd.DataFrame, condition: str | None) -> pd.DataFrame:
    """The rows that a pandas query keeps; ValueError where it cannot be evaluated or keeps none."""
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


def called() -> str:
    """The command line, as it goes into files."""
    return " ".join([Path(sys.argv[0]).name, *(text.removeprefix("++") for text in sys.argv[1:])])


def _print_runs(runs: pd.DataFrame) -> None:
    from pandas.api.types import is_numeric_dtype

    table = Table()
    for name in map(str, runs):
        table.add_column(RUN_COLUMNS.get(name, (name,))[0], justify="right" if is_numeric_dtype(runs[name]) else "left")
    for _, run in runs.iterrows():
        shown = [cell(run[n], *RUN_COLUMNS[n][1:]) if n in RUN_COLUMNS else cell(run[n]) for n in runs]
        table.add_row(*(escape(text) for text, _ in shown))
    Console(width=400).print(table)  # as wide as it needs to be: a number cut off helps nobody
