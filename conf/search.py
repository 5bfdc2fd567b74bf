"""Adaptive search: the points that bracket the best of those there are. No state but the records.

    points with results --more--> the neighbours of each best one, a factor away along every searched key

Points that differ only in the searched keys and the seed are one group. Where its best point lacks a neighbour, that is
asked for, with every seed; a group ends when its best point has them all. The same command goes on where it was.
"""

import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence

from conf.points import Point, expand
from data.files import read_json
from data.records import COMPLETED, DIVERGED

Place = tuple[float, ...]


def searched(asked: Sequence[Point], config_name: str = "config") -> list[Point]:
    """The points (as `conf.points.expand` gives them), and those that a search adds by the results there are.

    What a search comes to that is no valid point, as half a sequence, is said and left out.
    """
    points = list(asked)
    tried = {point.run_id for point in points}
    while added := [own for own in more(points) if " ".join(own) not in tried]:
        for own in added:
            tried.add(" ".join(own))
            try:
                (point,) = expand([own], config_name)
            except ValueError as error:
                print(f"warning: the search leaves out {' '.join(own)}: {error}", file=sys.stderr)
                continue
            if point.run_id not in tried:
                tried.add(point.run_id)
                points.append(point)
    return points


def more(points: Sequence[Point]) -> list[list[str]]:
    """Overrides of the points to train next; none where the search is at its end, or a group has no results yet."""
    found = []
    for group in _groups(points):
        search = group[0].config["launch"]["search"]
        results = defaultdict(list)
        for point in group:
            results[_place(point)].append(result(point))
        if any(math.isnan(value) for values in results.values() for value in values):
            continue
        means = {place: sum(values) / len(values) for place, values in results.items()}
        for place in missing(means, search["factor"])[: max(0, search["most"] - len(means))]:
            seeds = {tuple(_without(point, search["over"])): point for point in group}
            found += [
                [*own, *(f"{key}={value:.12g}" for key, value in zip(search["over"], place, strict=True))]
                for own in seeds
            ]
    return found


def missing(means: Mapping[Place, float], factor: float) -> list[Place]:
    """Places next to the best one that were not tried: its values times and divided by `factor`, one key at a time.

    `means`: what is to be as low as possible, by place; infinite where it diverged.
    """
    best = min(means, key=lambda place: (means[place], place))
    if math.isinf(means[best]):
        return []
    near = [(*best[:k], best[k] * by, *best[k + 1 :]) for k in range(len(best)) for by in (1 / factor, factor)]
    return [place for place in near if not any(_same(place, tried) for tried in means)]


def result(point: Point) -> float:
    """What the search minimises: tokens to the target where the point has one, else the final held-out loss.

    Infinite where it diverged or was not there in time; nan where it has not ended.
    """
    summary = read_json(point.folder / "summary.json")
    if summary.get("status") == DIVERGED:
        return math.inf
    if summary.get("status") != COMPLETED:
        return math.nan
    if point.config["stop_when"]:
        return summary["tokens"] if summary["stop_reason"] == "target" else math.inf
    return summary["eval_loss"]


def _groups(points: Sequence[Point]) -> list[list[Point]]:
    groups = defaultdict(list)
    for point in points:
        search = point.config["launch"]["search"]
        if search["over"]:
            groups[tuple(sorted(_without(point, [*search["over"], "seed"])))].append(point)
    return list(groups.values())


def _without(point: Point, keys: Sequence[str]) -> list[str]:
    return [text for text in point.config["launch"]["overrides"] if _key(text) not in keys]


def _place(point: Point) -> Place:
    """The point's values of the searched keys. ValueError where its overrides do not give each a positive number."""
    given = {_key(text): text.partition("=")[2] for text in point.config["launch"]["overrides"]}
    place = []
    for key in point.config["launch"]["search"]["over"]:
        try:
            value = float(given.get(key, ""))
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise ValueError(
                f"launch.search.over: {key}={given.get(key)} is no number that can be searched: sweep it, as {key}=1,2."
            )
        place.append(value)
    return tuple(place)


def _key(text: str) -> str:
    return text.partition("=")[0].lstrip("+")


def _same(a: Place, b: Place) -> bool:
    return all(math.isclose(x, y, rel_tol=1e-6) for x, y in zip(a, b, strict=True))
