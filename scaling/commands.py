"""`fulcrum report`, `fulcrum runs` and `fulcrum runs add`: configuration in, tables on the terminal and files out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data.files import flatten, read_json, write_json
from data.records import COMPLETED, find_run, load_runs, lock_run
from scaling.wording import choices, has_branches, heading, results, shown

if TYPE_CHECKING:
    import pandas as pd


def report_command(cfg: DictConfig) -> None:
    """Writes the report of the experiments at `cfg.runs` and prints where it is and the laws that it found."""
    from scaling.reports.write import Settings, write_report

    if not cfg.runs:
        raise ValueError("report needs runs=<folder of runs>, as runs=runs/quickstart or runs=[runs/cbs,runs/mup].")
    runs = [Path(cfg.runs)] if isinstance(cfg.runs, str) else [Path(one) for one in cfg.runs]
    settings = Settings(cfg.huber, cfg.starts, cfg.bootstrap, cfg.seed, cfg.holdout)
    sections = None if cfg.sections is None else list(cfg.sections)
    report = write_report(runs, sections, settings, Path(cfg.out) if cfg.out else None, called())
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
        names = _known(runs, "columns", list(cfg.columns))
    else:
        parent = ["parent"] if has_branches(runs) else []
        names = [name for name in ("run_id", "status", *parent, *results(runs), *choices(runs)) if name in runs]
    if cfg.format == "csv":
        print(runs[names].to_csv(index=False), end="")
    elif cfg.format == "json":
        print(runs[names].to_json(orient="records", indent=1))
    else:
        _print_runs(runs[names])


def add_command(cfg: DictConfig) -> None:
    """Stores the errors `cfg.added` in the record of the run `cfg.run`, a run_id below `cfg.runs` or a folder.

    ValueError for values that are no shares, and for runs that are not there or did not complete.
    """
    errors = dict(flatten(OmegaConf.to_container(cfg.added)))  # type: ignore[arg-type]
    if not errors:
        raise ValueError("runs add needs the error of a task at least, as err.hellaswag=0.41.")
    for key, value in errors.items():
        if not key.startswith("err."):
            raise ValueError(f"{key}={value}: what can be added is err.<task>, as err.hellaswag=0.41.")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(f"{key}={value}: an error is a share from 0 to 1, as 0.41.")
    if cfg.run is None:
        raise ValueError("runs add needs run=<run_id or folder of a run>.")
    folder = find_run(cfg.run, Path(cfg.runs))
    with lock_run(folder):  # nobody else may write the summary meanwhile
        summary = read_json(folder / "summary.json")
        if summary.get("status") != COMPLETED:
            raise ValueError(
                f"run={cfg.run} is {summary.get('status', 'unfinished')}: an error belongs to the weights that a run "
                "ends with. Let it complete first."
            )
        write_json(folder / "summary.json", summary | errors)
    print(f"{folder}: {', '.join(f'{key} = {value:g}' for key, value in errors.items())}")


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
        table.add_column(heading(name), justify="right" if is_numeric_dtype(runs[name]) else "left")
    for _, run in runs.iterrows():
        table.add_row(*(escape(shown(run, name)[0]) for name in runs))
    Console(width=400).print(table)  # as wide as it needs to be: a number cut off helps nobody
