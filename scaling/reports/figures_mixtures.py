"""Figures of mixtures: loss on each source against its share, the mean of all, and the best weights."""

from __future__ import annotations

from collections.abc import Mapping

import altair as alt
import numpy as np
import pandas as pd

from scaling.drawing import INK, Data, Spec, category, panel_title
from scaling.fit import Fit
from scaling.mixing import CHECK, MEAN, Mixed, told
from scaling.wording import short

_LINE = 60  # points of a line


def losses(found: Mixed, laws: Mapping[str, Fit]) -> Spec:
    """Held-out loss on each source against its share h, a panel for each, coloured by size and budget; and the law."""
    rows = found.fitted.assign(place=_places(found.fitted))
    colour = category("place", list(rows.sort_values(["N", "D"])["place"].drop_duplicates()), "size and budget")
    data, panels = Data(), []
    for domain in found.domains:
        points = rows[["place"]].assign(h=rows[f"h_{domain}"], loss=rows[f"loss_{domain}"])
        across = alt.X("h:Q", title=f"share of {domain}", scale=alt.Scale(domain=[0, 1]))
        first = domain == found.domains[0]
        y = alt.Y("loss:Q", title="held-out loss (nats per token)" if first else None, scale=alt.Scale(zero=False))
        told_of = ["place:N", alt.Tooltip("h:Q", format=".2f"), alt.Tooltip("loss:Q", format=".4f")]
        layers = []
        if domain in laws:
            lines = pd.concat([_line(found, laws[domain], domain, one) for _, one in rows.groupby("place")])
            layers.append(data.chart(lines).mark_line(strokeWidth=1.5).encode(across, y, colour))
        layers.append(data.chart(points).mark_circle(size=40, opacity=0.9).encode(across, y, colour, tooltip=told_of))
        title = panel_title(f"loss on {domain}")
        panels.append(alt.layer(*layers).properties(width=800 / len(found.domains) - 30, height=260, title=title))
    return data.finish(alt.hconcat(*panels, spacing=18), legend="top")


def means(found: Mixed) -> Spec:
    """Mean loss of every mixture, coloured by size and budget, the best mixtures on top."""
    rows = found.table.assign(place=_places(found.table), loss=found.table[f"loss_{MEAN}"])
    rows["mixture"] = [
        told(pd.Series({domain: row[f"h_{domain}"] for domain in found.domains})) for _, row in rows.iterrows()
    ]
    rows["excess"] = rows["loss"] - rows.groupby("place")["loss"].transform("mean")
    order = list(rows.groupby("mixture")["excess"].mean().sort_values(kind="stable").index)
    colour = category("place", list(rows.sort_values(["N", "D"])["place"].drop_duplicates()), "size and budget")
    x = alt.X("loss:Q", title="mean held-out loss (nats per token)", scale=alt.Scale(zero=False))
    y = alt.Y("mixture:N", sort=order, title=None, scale=alt.Scale(domain=order), axis=alt.Axis(labelLimit=300))
    data, layers = Data(), []
    columns = ["mixture", "place", "loss"]
    told_of = ["mixture:N", "place:N", alt.Tooltip("loss:Q", format=".4f")]
    for shape, kept in (("circle", rows["label"] != CHECK), ("diamond", rows["label"] == CHECK)):
        points = data.chart(rows.loc[kept, columns]).mark_point(shape=shape, size=65, filled=True, opacity=0.9)
        layers.append(points.encode(x, y, colour, tooltip=told_of))
    return data.finish(alt.layer(*layers).properties(width=460, height={"step": 22}), legend="top")


def weights(best: Mapping[str, pd.DataFrame]) -> Spec:
    """Best weights with intervals, a row per domain within a panel per target."""
    table = pd.concat([one.rename_axis("domain").reset_index().assign(target=name) for name, one in best.items()])
    domains = list(dict.fromkeys(table["domain"]))
    colour = category("domain", domains)
    data, panels = Data(), []
    for target in best:
        rows = table[table["target"] == target]
        y = alt.Y("domain:N", sort=domains, title=None)
        scale, title = alt.Scale(domain=[0, 1]), "best weight"
        name = "for all alike" if target == MEAN else f"for {target}"
        layers = [
            data.chart(rows).mark_rule(strokeWidth=1.6, color=INK).encode(
                alt.X("low:Q", title=title, scale=scale), alt.X2("high:Q"), y
            ),
            data.chart(rows).mark_circle(size=80, opacity=1).encode(
                alt.X("weight:Q", title=title, scale=scale), y, colour, tooltip=["domain:N", "weight:Q"]
            ),
        ]  # fmt: skip
        head = panel_title(name)
        panels.append(alt.layer(*layers).properties(width=800 / len(best) - 50, height={"step": 26}, title=head))
    return data.finish(alt.hconcat(*panels, spacing=14), legend="top")


def _places(rows: pd.DataFrame) -> pd.Series:
    return rows["N"].map(short) + " parameters, " + rows["D"].map(short) + " tokens"


def _line(found: Mixed, law: Fit, domain: str, group: pd.DataFrame) -> pd.DataFrame:
    """The law against the share of one domain, the others in equal shares."""
    h = np.linspace(group[f"h_{domain}"].min(), group[f"h_{domain}"].max(), _LINE)
    at = pd.DataFrame({f"h_{other}": (1 - h) / (len(found.domains) - 1) for other in found.domains})
    at[f"h_{domain}"] = h
    at = at.assign(N=group["N"].iloc[0], D=group["D"].iloc[0])
    return pd.DataFrame({"h": h, "loss": law.predict(at)["loss"], "place": group["place"].iloc[0]})
