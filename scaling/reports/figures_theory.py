"""What figures of theory beside runs share."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from scaling.drawing import Data


def measured_beside_exact(
    data: Data, lines: pd.DataFrame, points: pd.DataFrame, across: Any, up: Any, measured: str, colour: Any
) -> list[alt.Chart]:
    """Layers: exact `lines`, and `points` (columns `measured` and error) with two standard errors. `across` and `up`
    are the axes, of columns of the lines, and colour tells runs apart in both."""
    value, reach = points[measured], 2 * points["error"]
    bars = points.assign(low=(value - reach).clip(lower=0.1 * value), high=value + reach)  # axes are of logarithms
    return [
        data.chart(lines).mark_line(strokeWidth=1.5).encode(across, up, color=colour),
        data.chart(bars).mark_rule(strokeWidth=1.2).encode(across, y=alt.Y("low:Q"), y2="high:Q", color=colour),
        data.chart(bars).mark_point(filled=True, size=28).encode(across, y=alt.Y(f"{measured}:Q"), color=colour),
    ]
