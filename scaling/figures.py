"""Figures of runs and laws: tables in, Vega-Lite specifications out; one serves HTML, SVG, PDF and PNG.

Marks and axes are written in Altair. The data join the finished specification as named datasets, once each and
rounded to six digits, because they travel inside the HTML page. Sizes are coloured along viridis, small ones dark and
large ones green (its yellow end is too pale for white paper).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import vl_convert

from scaling.allocate import Allocation
from scaling.fit import Fit
from scaling.wording import short

Spec = dict[str, Any]
FORMATS = ("svg", "pdf", "png")
_EARLY = 50  # curves start at this fraction of the smallest run: before it, every loss is that of a new model
_BINS = 16  # points of a training curve: wide enough that the noise of single batches averages out
_NAMED = 10  # sizes that a legend names one by one
_TICKS = ((0.7, (1, 2, 3, 4, 5, 6, 7, 8, 9)), (2.6, (1, 2, 5)), (3.8, (1, 3)))  # most decades, ticks of each
_INK, _FAINT, _ACCENT = "#222222", "#9aa0a6", "#c2410c"
# Vega writes 1G for what the field calls 1B, and 1e+15 for 1e15.
_TEXT = {"labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": "normal"}
_COUNT_LABEL = "replace(format(datum.value, '~s'), 'G', 'B')"
_FLOPS_LABEL = "replace(format(datum.value, '~e'), '+', '')"


def curves(runs: pd.DataFrame, logged: pd.DataFrame, unigram: float | None = None) -> Spec:
    """Loss against tokens and against FLOPs: training (thin, `binned`) and held-out loss (points), coloured by N.

    `runs`: run_id, N; `logged`: run_id, tokens, flops, loss, eval_loss; `unigram`: entropy of single tokens, nats.
    """
    table = logged.merge(runs[["run_id", "N"]], on="run_id")
    start = table.groupby("run_id")["tokens"].max().min() / _EARLY
    table = table[table["tokens"] >= start]
    training = binned(table)
    colour = _size_colour(runs["N"])
    kept = [c for c in ("run_id", "N", "tokens", "flops", "eval_loss") if c in table]
    held_out = table.loc[table["eval_loss"].notna(), kept] if "eval_loss" in table else table.loc[[], kept]
    held_out = held_out.rename(columns={"eval_loss": "loss"})
    unigram_line = pd.DataFrame({"loss": [unigram], "text": ["unigram entropy"]})
    data, panels = _Data(), []
    for x, title, label in (("tokens", "training tokens", _COUNT_LABEL), ("flops", "training FLOPs", _FLOPS_LABEL)):
        across = _log(alt.X, x, title, table[x], label)
        y = alt.Y("loss:Q", title="loss (nats per token)", scale=alt.Scale(zero=False))
        layers = [
            data.chart(training).mark_line(strokeWidth=1.2, opacity=0.6).encode(across, y, colour, detail="run_id:N"),
            data.chart(held_out)
            .mark_circle(size=30, opacity=1)
            .encode(across, y, colour, tooltip=["run_id:N", *_tooltips("loss", count=x)]),
        ]
        if unigram is not None and training["loss"].max() > unigram:
            rule = data.chart(unigram_line)
            layers.append(rule.mark_rule(strokeDash=[5, 4], color=_INK, opacity=0.6).encode(y="loss:Q"))
            words = rule.mark_text(align="right", baseline="bottom", dy=-3, fontSize=12, color=_INK)
            layers.append(words.encode(x=alt.value(405), y="loss:Q", text="text:N"))
        panels.append(alt.layer(*layers).properties(width=410, height=300))
    return data.finish(alt.hconcat(*panels, spacing=28))


def binned(table: pd.DataFrame) -> pd.DataFrame:
    """Training loss of every run as means over bins that are evenly spaced in log tokens: smooth, and small."""
    table = table[np.isfinite(table["loss"])]
    log_tokens = np.log(table["tokens"])
    span = log_tokens.groupby(table["run_id"]).transform(lambda x: max(x.max() - x.min(), 1e-9))
    start = log_tokens.groupby(table["run_id"]).transform("min")
    which = np.minimum(((log_tokens - start) / span * _BINS).astype(int), _BINS - 1).rename("bin")
    means = table.groupby([table["run_id"], which])[["N", "tokens", "flops", "loss"]].mean()
    return means.reset_index().drop(columns="bin")


def law(fit: Fit) -> Spec:
    """Measured loss against tokens for every size, with the law and its 90 % interval."""
    table = fit.rows.table
    sizes = np.sort(table["N"].unique())
    if len(sizes) > _NAMED:  # too many lines to tell apart
        sizes = sizes[np.unique(np.linspace(0, len(sizes) - 1, _NAMED).round().astype(int))]
    tokens = np.geomspace(table["D"].min() / 1.3, table["D"].max() * 1.3, 60)
    grid = pd.DataFrame({"N": np.repeat(sizes, len(tokens)), "D": np.tile(tokens, len(sizes))})
    grid = grid.join(fit.predict(grid, interval=0.9 if fit.free_replicates is not None else None))
    colour = _size_colour(table["N"])
    across = _log(alt.X, "D", "training tokens D", tokens, _COUNT_LABEL)
    y = alt.Y("loss:Q", title=_loss_title(fit), scale=alt.Scale(zero=False))
    data = _Data()
    base = data.chart(grid).encode(across, colour, detail="N:Q")
    layers = [base.mark_line(strokeWidth=1.5).encode(y)]
    if "low" in grid:
        layers.insert(0, base.mark_area(opacity=0.15).encode(alt.Y("low:Q"), alt.Y2("high:Q")))
    points = data.chart(table[["N", "D", "loss"]]).mark_circle(size=55, opacity=1).encode(
        across, y, colour, tooltip=_tooltips("loss")
    )  # fmt: skip
    return data.finish(alt.layer(*layers, points).properties(width=560, height=320))


def residuals(fit: Fit) -> Spec:
    """Measured against predicted loss with a 2 % band, and the error of the law for every size."""
    table = fit.rows.table[["N", "D", "loss"]].copy()
    table["predicted"] = fit.predict(table)["loss"]
    table["error"] = 100 * (table["predicted"] / table["loss"] - 1)
    colour = _size_colour(table["N"])
    low, high = 0.98 * table[["loss", "predicted"]].min().min(), 1.02 * table[["loss", "predicted"]].max().max()
    ends = pd.DataFrame({"predicted": [low, high], "loss": [low, high]})
    ends["under"], ends["over"] = 0.98 * ends["predicted"], 1.02 * ends["predicted"]
    scale = alt.Scale(domain=[low, high], zero=False, nice=False)
    x = alt.X("predicted:Q", title="predicted " + _loss_title(fit), scale=scale)
    y = alt.Y("loss:Q", title="measured " + _loss_title(fit), scale=scale)
    data = _Data()
    line = data.chart(ends).encode(x)
    points = (
        data.chart(table)
        .mark_circle(size=60, opacity=1)
        .encode(colour, tooltip=_tooltips("loss", "predicted", "error"))
    )
    left = alt.layer(
        line.mark_area(color=_FAINT, opacity=0.25, clip=True).encode(alt.Y("under:Q", scale=scale), alt.Y2("over:Q")),
        line.mark_line(color=_INK, strokeWidth=1).encode(y),
        points.encode(x, y),
    ).properties(width=330, height=330)
    reach = max(2.5, 1.1 * table["error"].abs().max())
    error_title, scale = "predicted / measured - 1 (%)", alt.Scale(domain=[-reach, reach])
    error = alt.Y("error:Q", title=error_title, scale=scale)
    band = data.chart(pd.DataFrame({"under": [-2.0], "over": [2.0], "error": [0.0]}))
    right = alt.layer(
        band.mark_rect(color=_FAINT, opacity=0.25).encode(
            alt.Y("under:Q", title=error_title, scale=scale), alt.Y2("over:Q")
        ),
        band.mark_rule(color=_INK).encode(y="error:Q"),
        points.encode(_log(alt.X, "N", "model size N (parameters)", table["N"], _COUNT_LABEL), error),
    ).properties(width=430, height=330)
    return data.finish(alt.hconcat(left, right, spacing=40))


def allocation(exact: Allocation, approximate: Allocation | None, ran: pd.DataFrame) -> Spec:
    """Best size, best token count and loss against budget, with intervals; dashed: what C = 6 N D would say.

    `ran` (the fitted rows: N, D, C, loss) is drawn as small points, and its range of C is shaded.
    """
    data = _Data()
    shaded = data.chart(pd.DataFrame({"from": [ran["C"].min()], "to": [ran["C"].max()]}))
    kinds = [("exact FLOPs" if approximate is not None else exact.convention, exact)]
    if approximate is not None:
        kinds.append(("C = 6 N D", approximate))
    tables = [a.table.assign(counted=name) for name, a in kinds]
    points = ran[["N", "D", "C", "loss"]]
    colour = alt.Color(
        "counted:N", title=None, scale=alt.Scale(domain=[k for k, _ in kinds], range=[_ACCENT, _INK][: len(kinds)])
    )
    dash = alt.StrokeDash(
        "counted:N", title=None, scale=alt.Scale(domain=[k for k, _ in kinds], range=[[1, 0], [5, 4]][: len(kinds)])
    )
    panels = []
    for name, title in (
        ("N", "best size N (parameters)"),
        ("D", "best tokens D"),
        ("loss", "loss at the best size"),
    ):
        across = _log(alt.X, "C", "training FLOPs C", [*exact.table["C"], *ran["C"]], _FLOPS_LABEL)
        drawn = [exact.table[c] for c in (name, f"{name}_low", f"{name}_high") if c in exact.table]
        shown = np.concatenate([*drawn, kinds[-1][1].table[name], ran[name]])
        y = alt.Y(f"{name}:Q", title=title, scale=alt.Scale(zero=False))
        if name != "loss":
            y = _log(alt.Y, name, title, shown, _COUNT_LABEL)
        layers = [
            shaded.mark_rect(color=_FAINT, opacity=0.15).encode(alt.X("from:Q"), alt.X2("to:Q")),
            data.chart(points).mark_circle(size=14, color=_FAINT, opacity=0.9).encode(across, y),
        ]
        if f"{name}_low" in exact.table:
            layers.append(
                data.chart(tables[0])
                .mark_area(color=_ACCENT, opacity=0.2)
                .encode(across, alt.Y(f"{name}_low:Q"), alt.Y2(f"{name}_high:Q"))
            )
        layers += [data.chart(t).mark_line(strokeWidth=2).encode(across, y, colour, dash) for t in reversed(tables)]
        panels.append(alt.layer(*layers).properties(width=245, height=260))
    return data.finish(alt.hconcat(*panels, spacing=24), legend="top")


def save(spec: Spec, folder: Path, name: str) -> list[Path]:
    """Writes `folder`/`name`.svg, .pdf and .png (twice the screen's resolution) and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    contents: dict[str, Any] = {
        "svg": vl_convert.vegalite_to_svg(spec).encode(),
        "pdf": vl_convert.vegalite_to_pdf(spec),
        "png": vl_convert.vegalite_to_png(spec, scale=2),
    }
    paths = [folder / f"{name}.{kind}" for kind in FORMATS]
    for path, kind in zip(paths, FORMATS, strict=True):
        path.write_bytes(contents[kind])
    return paths


def _size_colour(sizes: Any) -> alt.Color:
    """Colour by N: one named step per size, or a scale of log N where the sizes are too many to name."""
    sizes = np.unique(np.asarray(sizes, float))
    viridis = alt.SchemeParams("viridis", extent=[0, 0.88])
    if len(sizes) > _NAMED:
        scale = alt.Scale(type="log", domain=[sizes[0], sizes[-1]], scheme=viridis)
        legend = alt.Legend(type="gradient", labelExpr=_COUNT_LABEL, values=_ticks(sizes[0], sizes[-1]))
        return alt.Color("N:Q", title="N", scale=scale, legend=legend)
    names = list(dict.fromkeys(short(size) for size in sizes))
    return alt.Color(
        "size:O",
        title="N",
        sort=names,
        scale=alt.Scale(domain=names, scheme=viridis),
        legend=alt.Legend(symbolOpacity=1, symbolType="circle"),
    )


def _loss_title(fit: Fit) -> str:
    names = {"eval_loss": "held-out loss (nats per token)", "eval_bits_per_byte": "held-out loss (bits per byte)"}
    return names.get(fit.rows.columns["loss"], fit.rows.columns["loss"])


def _log(channel: Any, name: str, title: str | None, values: Any, label: str) -> Any:
    """A log axis over the range of `values`."""
    low, high = float(np.min(values)), float(np.max(values))
    reach = (high / low) ** 0.03 if high > low else 1.2
    low, high = low / reach, high * reach
    return channel(
        f"{name}:Q",
        title=title,
        scale=alt.Scale(type="log", nice=False, domain=[low, high]),
        axis=alt.Axis(
            labelExpr=label, values=_ticks(low, high), labelOverlap="greedy", labelFlush=False, labelSeparation=6
        ),
    )


def _ticks(low: float, high: float) -> list[float]:
    """Ticks of a log scale: at 1, 2, 5 of every decade, more where decades are few and fewer where they are many."""
    decades = np.log10(high / low)
    steps = next((s for most, s in _TICKS if decades < most), (1,))
    every = max(1, round(decades / 7))
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [float(f"{step}e{power}") for power in powers if power % every == 0 for step in steps]
    return [tick for tick in ticks if low <= tick <= high]


def _tooltips(*names: str, count: str = "D") -> list[Any]:
    return [
        alt.Tooltip("size:N", title="N"),
        alt.Tooltip(f"{count}:Q", format=".3s"),
        *(alt.Tooltip(f"{n}:Q", format=".4f") for n in names),
    ]


class _Data:
    """The tables of one figure. `chart(table)` starts a chart on a table, which may be used for several charts."""

    def __init__(self) -> None:
        self._tables: list[pd.DataFrame] = []

    def chart(self, table: pd.DataFrame) -> alt.Chart:
        known = [k for k, other in enumerate(self._tables) if other is table]
        if not known:
            self._tables.append(table)
        return alt.Chart(alt.NamedData(f"table{known[0] if known else len(self._tables) - 1}"))

    def datasets(self) -> dict[str, list[dict[str, Any]]]:
        return {f"table{k}": _records(table) for k, table in enumerate(self._tables)}

    def finish(self, chart: Any, legend: str = "right") -> Spec:
        """The specification of `chart` in the look that all figures share, with the data."""
        chart = chart.configure(font="Helvetica, Arial, sans-serif", background="white").configure_view(stroke=None)
        chart = chart.configure_axis(
            **_TEXT, labelColor=_INK, titleColor=_INK, gridColor="#eceff1", domainColor="#b0b6bb", tickColor="#b0b6bb",
            titlePadding=8,
        ).configure_legend(**_TEXT, orient=legend, symbolSize=90)  # fmt: skip
        return chart.to_dict() | {"datasets": self.datasets()}


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows with six digits, and `size`, the short name of N."""
    records = []
    for row in table.to_dict("records"):
        record = {str(k): float(f"{v:.6g}") if isinstance(v, int | float | np.number) else v for k, v in row.items()}
        if "N" in record:
            record["size"] = short(record["N"])
        records.append(record)
    return records
