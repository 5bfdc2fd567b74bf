"""Adaptive search: the points that bracket the best of those there are. No state but the records.

    points with results --more--> the neighbours of each best one, a factor away along every searched key

Points that differ only in the searched keys and the seed are one group. Where its best point lacks a neighbour, that is
asked for, with every seed; a group ends when its best point has them all. The same command goes on where it was.
"""

import math
import sys
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence

from conf.points import Point, expand
from data.descents import descent, tokens_to
from data.files import read_json
from data.records import COMPLETED, DIVERGED, read_metrics

Place = tuple[float, ...]


def searched(asked: Sequence[Point], config_name: str = "config") -> list[Point]:
    """The points (as `conf.points.expand` gives them), then those that a search adds by the results there are.

    What a search comes to that is no valid point, as half a sequence, is said and left out.
    """
    points, known, refused = list(asked), {point.run_id for point in asked}, set[str]()
    while added := more(points, refused):
        before = len(points), len(refused)
        for own in added:
            try:
                found = expand([own], config_name)  # a branch comes with its parent
            except ValueError as error:
                print(f"warning: the search leaves out {' '.join(own)}: {error}", file=sys.stderr)
                refused.add(" ".join(own))
                continue
            points += [point for point in found if point.run_id not in known]
            known |= {point.run_id for point in found}
        if (len(points), len(refused)) == before:  # all are runs that there are, by other words
            break
    return points


def more(points: Sequence[Point], refused: Container[str] = ()) -> list[list[str]]:
    """Overrides of the points to train next, none of them `refused`; [] where no group asks for any."""
    return [own for group in _groups(points) for own in _next(group, refused)[0]]


def outcomes(points: Sequence[Point]) -> list[str]:
    """For every group what its search has come to, in words. What it still asks for then is no valid point."""
    return [_next(group, ())[1] for group in _groups(points)]


def _next(group: Sequence[Point], refused: Container[str]) -> tuple[list[list[str]], str]:
    """What a group asks for, and how it stands."""
    search = group[0].config["launch"]["search"]
    keys = search["over"]
    what = " ".join(_without(group[0], [*keys, "seed"])) or "the search"
    results = defaultdict(list)
    for point in group:
        results[_place(point)].append(result(point))
    waits = sum(math.isnan(value) for values in results.values() for value in values)
    if waits:
        return [], f"{what}: waits for {waits} of {len(group)} runs that have not ended"
    means = {place: sum(values) / len(values) for place, values in results.items()}
    best = min(means, key=lambda place: (means[place], place))
    if math.isinf(means[best]):
        return [], f"{what}: no value came to a result, so there is nothing to bracket"
    seeds = {tuple(_without(point, keys)) for point in group}
    asked = [
        [[*own, *(f"{key}={value:.12g}" for key, value in zip(keys, place, strict=True))] for own in sorted(seeds)]
        for place in missing(means, search["factor"])
    ]
    asked = [of_place for of_place in asked if not any(" ".join(own) in refused for own in of_place)]
    named = ", ".join(f"{key}={value:.6g}" for key, value in zip(keys, best, strict=True))
    if not asked:
        return [], f"{what}: {named} is best of {len(means)}, its neighbours were tried"
    left = asked[: max(0, search["most"] - len(means))]
    if not left:
        most = search["most"]
        return [], f"{what}: {named} is best of {len(means)}, not bracketed: launch.search.most={most} is reached"
    said = f"{what}: {named} is best of {len(means)}, and a neighbour is no valid point"
    return [own for of_place in left for own in of_place], said


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

    Infinite where it diverged or was not there; nan where it has not ended.
    """
    summary = read_json(point.folder / "summary.json")
    if summary.get("status") == DIVERGED:
        return math.inf
    if summary.get("status") != COMPLETED:
        return math.nan
    if point.config["stop_when"]:
        fall = descent(read_metrics(point.folder / "metrics.jsonl"))
        tokens = tokens_to(fall, point.config["stop_when"]["loss"])
        return fall[0, 0] if math.isnan(tokens) else tokens  # there before its first evaluation
    return summary["eval_loss"]


def _groups(points: Sequence[Point]) -> list[list[Point]]:
    groups = defaultdict(list)
    parents = {point.parent for point in points}
    for point in points:
        search = point.config["launch"]["search"]
        if search["over"] and point.folder not in parents:
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
