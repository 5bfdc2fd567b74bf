"""`fulcrum fit`, `predict`, `allocate` and `plan-next`: configuration in, tables on the terminal and files out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data.records import load_curves, load_runs, write_atomic, write_json
from scaling.commands import called, filtered
from scaling.wording import between, flops, short, three

_SHOWN = 40  # rows of a prediction on the terminal

if TYPE_CHECKING:
    import pandas as pd

    from scaling.choose import Holdout
    from scaling.fit import Fit
    from scaling.laws.law import Law


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
    table = filtered((load_curves if law.along_curves else load_runs)(source), cfg.filter)
    columns = {ours: theirs for ours, theirs in cfg.columns.items() if theirs is not None}
    held = {"fixed": _numbers(cfg, "fixed"), "priors": _priors(cfg, law)}
    fitted = fit(
        law, table, loss, cfg.starts, cfg.seed, weights=cfg.weights, columns=columns, residuals=cfg.residuals, **held
    )
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


def predict_command(cfg: DictConfig) -> None:
    """Prints what the law in `cfg.fit` predicts at the given columns, with intervals for the law and for one run."""
    import numpy as np
    import pandas as pd

    from scaling import keep
    from scaling.rows import checked

    fitted, _ = keep.read(_given(cfg, "fit", "fit.json"))
    at = {str(name): value for name, value in cfg.at.items()}
    unknown = [name for name in at if name not in fitted.law.columns]
    if unknown:
        raise ValueError(f"{unknown[0]}={at[unknown[0]]}: {fitted.law.name} reads {', '.join(fitted.law.columns)}.")
    if cfg.table is not None:
        table = load_runs(_existing(cfg.table, "table")).assign(**at)
    else:
        values = {name: OmegaConf.to_container(v) if OmegaConf.is_list(v) else [v] for name, v in at.items()}
        table = pd.DataFrame([dict(zip(values, row, strict=True)) for row in _product(list(values.values()))])
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


def allocate_command(cfg: DictConfig) -> None:
    """Prints the best model size and token count for training budgets, with intervals."""
    from scaling import keep
    from scaling.allocate import allocate, family

    import pandas as pd  # isort: skip

    fitted, kept = keep.read(_given(cfg, "fit", "fit.json"))
    budgets = _budgets(_given(cfg, "C", "1e22"))
    shapes = kept["state"]["shapes"]
    along = family(pd.DataFrame(shapes)) if shapes and not cfg.six_nd else None
    found = allocate(fitted, budgets, along, cfg.level)
    share = f"{cfg.level:.0%}"
    drawn = "N_low" in found.table
    between_ends = [share] if drawn else []
    shown = Table(
        "FLOPs C", "best N", *between_ends, "best D", *between_ends, "D / N", fitted.law.target, *between_ends, ""
    )
    for _, row in found.table.iterrows():
        cells = [flops(row["C"])]
        for name, write in (
            ("N", short),
            ("D", short),
            ("tokens_per_parameter", three),
            ("loss", lambda x: f"{x:.4f}"),
        ):
            cells.append(write(row[name]))
            if drawn and name != "tokens_per_parameter":
                cells.append(between(row[f"{name}_low"], row[f"{name}_high"], write))
        shown.add_row(*cells, "extrapolated" if row["extrapolated"] else "")
    Console(highlight=False, width=140).print(shown)
    print(f"Budgets are {found.convention}.")
    if fitted.rows.convention.get("C", "6 N D") != "6 N D" and along is None:
        print(f"The fitted rows count C otherwise: {fitted.rows.convention['C']}.")
    for note in found.notes:
        print(f"Note: {note}")
    if not drawn:
        print("No intervals: the fit has no bootstrap replicates (fulcrum fit bootstrap=1000).")


def plan_next_command(cfg: DictConfig) -> None:
    """Writes the runs, within `cfg.budget` FLOPs, that would make the law's prediction at the target surest."""
    import pandas as pd

    from scaling import keep, next_runs
    from scaling.allocate import allocate, check_law, family
    from scaling.design import plan_next

    fitted, kept = keep.read(_given(cfg, "fit", "fit.json"))
    (budget,) = _budgets(_given(cfg, "budget", "1e18"), "budget")
    check_law(fitted)
    shapes = kept["state"]["shapes"]
    models = None if cfg.models is None else [str(name) for name in cfg.models]
    sizes = next_runs.sizes(shapes, models)
    aim = cfg.target
    if (aim.N is None) != (aim.D is None) or (aim.C is not None and aim.N is not None):
        raise ValueError("target: give both target.N and target.D, or target.C (its best N and D), or nothing.")
    if aim.N is None:
        largest = 10 * float(fitted.rows.table["C"].max())
        best = allocate(fitted, aim.C or largest, family(pd.DataFrame(shapes))).table
        target = best[["N", "D"]]
    else:
        target = pd.DataFrame({"N": [float(aim.N)], "D": [float(aim.D)]})
    design = plan_next(fitted, sizes, budget, target, cfg.most, cfg.level)
    out = Path(cfg.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, next_runs.points_file(design, called()))
    shown = Table("N", "tokens D", "D / N", "FLOPs C", "overrides")
    for _, run in design.runs.iterrows():
        shown.add_row(short(run["N"]), short(run["D"]), three(run["D"] / run["N"]), flops(run["C"]),
                      escape(" ".join(run["overrides"])))  # fmt: skip
    Console(highlight=False, width=160).print(shown)
    at = target.iloc[0]
    print(
        f"{len(design.runs)} runs, {flops(design.flops)} FLOPs. The {cfg.level:.0%} interval of the law at N = "
        f"{short(at['N'])}, D = {short(at['D'])} (loss {fitted.predict(target)[fitted.law.target].iloc[0]:.4f}): "
        f"now +-{design.before:.2%}, with these runs about +-{design.after:.2%}. A uniform grid of as many runs would "
        f"need {design.uniform_flops / design.flops:.1f} times the FLOPs for that."
    )
    print(f"Written to {out}: fulcrum train points={out}")


def list_laws() -> None:
    """Prints every law with its formula, columns, parameters, source and published constants."""
    import yaml

    from scaling import keep

    from importlib.resources import files  # isort: skip

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
    only = "the only minimum found" if len(fitted.minima) == 1 else f"the best of {len(fitted.minima)} minima found"
    logs = fitted.problem.residuals == "log"
    size = "{:.2%}" if logs else "{:.4g}"
    rms, most = (float(np.expm1(x)) if logs else x for x in (fitted.residual_rms, fitted.residual_max))
    print(
        f"Objective {fitted.objective:.6g}, reached by {fitted.agreement:.0%} of {fitted.starts} starts, {only}; "
        f"residuals {size.format(rms)} (rms), {size.format(most)} at worst."
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


def _budgets(given: Any, option: str = "C") -> list[float]:
    values = list(given) if OmegaConf.is_list(given) else [given]
    try:
        budgets = [float(value) for value in values]
    except (TypeError, ValueError):
        raise ValueError(f"{option}={given}: training FLOPs, as 1e22 or [1e21,1e22].") from None
    if not all(0 < value < float("inf") for value in budgets):
        raise ValueError(f"{option}={given} must be positive training FLOPs.")
    return budgets


def _given(cfg: DictConfig, name: str, example: str) -> Any:
    if cfg[name] is None:
        raise ValueError(f"{name}=<...> is needed, as in {name}={example}.")
    return cfg[name]


def _product(values: list[Any]) -> list[list[Any]]:
    from itertools import product

    return [list(row) for row in product(*values)]


def _digits(value: float) -> str:
    return f"{value:#.5g}".rstrip(".")
