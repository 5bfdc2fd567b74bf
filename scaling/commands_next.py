"""`fulcrum allocate` and `fulcrum plan-next`: what to train, from a fit.json."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data.files import write_atomic
from scaling.commands import called
from scaling.commands_fit import given
from scaling.wording import between, flops, short, thousandth, three

if TYPE_CHECKING:
    from scaling.fit import Fit


def allocate_command(cfg: DictConfig) -> None:
    """Prints the best model size and token count for training budgets, with intervals."""
    import pandas as pd

    from scaling import keep
    from scaling.allocate import allocate, family
    from scaling.laws.mixtures import Mixture

    fitted, kept = keep.read(given(cfg, "fit", "fit.json"))
    if isinstance(fitted.law, Mixture):
        _print_weights(fitted, cfg)
        return
    budgets = _budgets(given(cfg, "C", "1e22"))
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


def _print_weights(fitted: Fit, cfg: DictConfig) -> None:
    """The best weights of a mixture's domains at N and D, with percentiles over some of the replicates."""
    from scaling.mixing import best_weights

    size, tokens = (_budgets(given(cfg, name, "1e9"), name)[0] for name in ("N", "D"))
    best = best_weights(fitted, size, tokens, cfg.level)
    shown = Table("domain", "best weight", *([f"{cfg.level:.0%}"] if "low" in best else []))
    for domain, row in best.iterrows():
        ends = [between(row["low"], row["high"], thousandth)] if "low" in best else []
        shown.add_row(str(domain), thousandth(row["weight"]), *ends)
    Console(highlight=False, width=100).print(shown)


def plan_next_command(cfg: DictConfig) -> None:
    """Writes the runs, within `cfg.budget` FLOPs, that would make the law's prediction at the target surest."""
    import pandas as pd

    from scaling import keep, next_runs
    from scaling.allocate import allocate, check_law, family
    from scaling.design import plan_next

    fitted, kept = keep.read(given(cfg, "fit", "fit.json"))
    (budget,) = _budgets(given(cfg, "budget", "1e18"), "budget")
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


def _budgets(given: Any, option: str = "C") -> list[float]:
    values = list(given) if OmegaConf.is_list(given) else [given]
    try:
        budgets = [float(value) for value in values]
    except (TypeError, ValueError):
        raise ValueError(f"{option}={given}: training FLOPs, as 1e22 or [1e21,1e22].") from None
    if not all(0 < value < float("inf") for value in budgets):
        raise ValueError(f"{option}={given} must be positive training FLOPs.")
    return budgets
