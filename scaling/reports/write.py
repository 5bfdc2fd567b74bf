"""The report of one or several experiments: what was run, what law it follows, and what to train next.

    <runs>/**/run.json, metrics.jsonl --load--> tables --sections--> <runs>/report/index.html
                                                                     <runs>/report/figures/*.svg, .pdf, .png, .json
                                                                     <runs>/report/tables/*.csv, constants.tex
                                                                     <runs>/report/fit.json, seesaw.json, ...

Which analyses follow is a list of names in <experiment>/sweep.json, key "report"; each name is a function in
`SECTIONS`. The runs and their curves are always shown. An analysis that the runs do not allow says why and the rest
stands. Of several experiments each has a part of the page and a folder of that name for its files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path

import pandas as pd

from data.files import read_json, write_atomic, write_json
from data.records import load_curves, load_runs
from scaling import drawing
from scaling.reports import tables
from scaling.reports.cbs import cbs
from scaling.reports.cbs_branched import cbs_branched
from scaling.reports.chinchilla import chinchilla
from scaling.reports.curve_transfer import curve_transfer
from scaling.reports.data_repetition import data_repetition
from scaling.reports.hyperparameters import hyperparameters
from scaling.reports.isoflop import isoflop
from scaling.reports.mixtures import mixtures
from scaling.reports.mup import mup
from scaling.reports.opening import curves_section, runs_section
from scaling.reports.page import Figure, Section, bullets, contents, escape, math, page, placed, section
from scaling.reports.records import Records, Settings
from scaling.reports.schedules import schedules
from scaling.reports.seesaw import seesaw
from scaling.reports.theory_cbs import theory_cbs
from scaling.reports.theory_check import theory_check
from scaling.reports.theory_seesaw import theory_seesaw

SECTIONS: dict[str, Callable[[Records], Section]] = {
    "cbs": cbs,
    "cbs_branched": cbs_branched,
    "hyperparameters": hyperparameters,
    "chinchilla": chinchilla,
    "isoflop": isoflop,
    "data_repetition": data_repetition,
    "mixtures": mixtures,
    "mup": mup,
    "seesaw": seesaw,
    "schedules": schedules,
    "curve_transfer": curve_transfer,
    "theory_cbs": theory_cbs,
    "theory_check": theory_check,
    "theory_seesaw": theory_seesaw,
}
_DEFAULT_SECTIONS = ("chinchilla",)
_SHARPEN = "to_sharpen"  # key in a figure's file that others beside it do not have
_LEAD = 6  # sentences that a page opens with, or one for each experiment where there are more
_NAMED = 2  # run_ids that are named below a figure; all are in its file
_FOOT = (
    "N counts parameters without embedding and output head; loss is in nats per token; C is exact training FLOPs of "
    "the model's shape unless said otherwise. Written by Fulcrum from the records of these runs."
)


@dataclass(frozen=True)
class Report:
    """Where the page was written, and the laws in one line each (empty when none was fitted)."""

    path: Path
    line: str


@dataclass(frozen=True)
class _Experiment:
    """One folder of runs with its analyses by name; `place`: the folder of its files in the report, with a slash, or
    nothing where it is the only one."""

    name: str
    place: str
    runs: pd.DataFrame
    parts: dict[str, Section] = field(default_factory=dict)
    failed: str = ""

    @property
    def answers(self) -> list[str]:
        """All sentences, the first ones of every analysis first; what is to be known of the runs themselves last."""
        if self.failed:
            return [f"No report: {escape(self.failed)}"]
        about_runs = [answer for name in _ALWAYS for answer in self.parts[name].answers]
        rounds = _in_turn([part.answers for name, part in self.parts.items() if name not in _ALWAYS])
        return [answer for _, answer in rounds] + about_runs


_ALWAYS = ("curves", "runs")


def write_report(
    runs: Path | Sequence[Path],
    sections: Sequence[str] | None = None,
    settings: Settings | None = None,
    out: Path | None = None,
    command: str | None = None,
) -> Report:
    """Writes the report of the experiments at or below `runs` to `out` (default: `runs`/report, or report for several).

    `sections` None takes the list in each sweep.json, or ["chinchilla"]; `command` is noted with the numbers of each
    section, in <section>.json (fit.json for the law). ValueError for an unknown section, or where there are no runs.
    """
    given = [runs] if isinstance(runs, Path) else list(runs)
    folders, strays = experiments(given)
    names = _names(folders)
    places = [f"{place}/" for place in _file_names(names)] if len(folders) > 1 else [""]
    out = out or (given[0] / "report" if len(given) == 1 else Path("report"))
    wanted = [_sections(folder, sections) for folder in folders]
    done = [
        _analysed(folder, name, place, asked, settings or Settings())
        for folder, name, place, asked in zip(folders, names, places, wanted, strict=True)
    ]
    if all(one.failed for one in done):
        raise ValueError(done[0].failed)
    for folder in [out, *(table.parents[1] for table in out.glob("*/tables/runs_1.csv"))]:  # parts of an earlier report
        _clear(folder)
    for one in done:
        _write_files(one, out, command)
    _write_constants(done, out, command)
    write_atomic(out / "index.html", _page(done, strays))
    lines = [part.line for one in done for part in one.parts.values() if part.line]
    return Report(out / "index.html", "\n".join(lines))


def experiments(paths: Sequence[Path]) -> tuple[list[Path], int]:
    """The folders of experiments at or below `paths`, each once: those with a sweep.json, else the path itself; and how
    many runs lie beside them in none."""
    found: list[Path] = []
    strays = 0
    for path in paths:
        if not path.exists():
            raise ValueError(f"runs={path}: no such folder. Give one of runs, as runs/quickstart.")
        swept = [path] if (path / "sweep.json").is_file() else _below(path, "sweep.json")
        found += [folder for folder in swept or [path] if folder.resolve() not in {one.resolve() for one in found}]
        strays += sum(not any(run.is_relative_to(one) for one in swept or [path]) for run in _below(path, "run.json"))
    return found, strays


def _below(path: Path, name: str) -> list[Path]:
    """Folders below `path` that hold a file `name`, but for hidden ones."""
    files = (file.relative_to(path) for file in path.rglob(name))
    return sorted(path / file.parent for file in files if not any(part.startswith(".") for part in file.parts))


def _names(folders: Sequence[Path]) -> list[str]:
    """What each experiment is called: its folder, with the way there where several have that name."""
    names = [folder.resolve().name for folder in folders]
    return [str(path) if names.count(name) > 1 else name for path, name in zip(folders, names, strict=True)]


def _file_names(names: Sequence[str]) -> list[str]:
    """Each name as a folder and an anchor have it, no two alike."""
    found: list[str] = []
    for name in names:
        plain = re.sub(r"[^\w.-]+", "-", name).strip("-.")
        found.append(next(one for one in chain([plain], (f"{plain}_{k}" for k in count(2))) if one not in found))
    return found


def _sections(folder: Path, asked: Sequence[str] | None) -> list[str]:
    names = list(asked if asked is not None else read_json(folder / "sweep.json").get("report", _DEFAULT_SECTIONS))
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        raise ValueError(f"sections={names}: no section {unknown[0]!r}; there are {', '.join(SECTIONS)}.")
    return names


def _analysed(folder: Path, name: str, place: str, asked: Sequence[str], settings: Settings) -> _Experiment:
    try:
        runs = load_runs(folder)
        if "N" not in runs:
            raise ValueError(f"{folder}: none of its {len(runs)} runs has begun (no run.json).")
    except ValueError as error:
        return _Experiment(name, place, pd.DataFrame(), failed=str(error))
    curves, no_curves = _load_curves(folder)
    records = Records(runs, curves, settings)
    parts = {section: SECTIONS[section](records) for section in asked}
    always = {"curves": curves_section(records, no_curves), "runs": runs_section(runs)}
    return _Experiment(name, place, runs, parts | always)


def _load_curves(runs: Path) -> tuple[pd.DataFrame, str]:
    """The logged curves, or none and why."""
    try:
        return load_curves(runs), ""
    except ValueError as error:
        return pd.DataFrame({"run_id": [], "step": [], "tokens": [], "loss": []}), str(error)


# ---------------------------------------------------------------------------------------------------- files


def _clear(folder: Path) -> None:
    """Removes the numbers, tables and figures of an earlier report, and no other files: this one may have none."""
    for name in [*SECTIONS, *_ALWAYS]:
        _numbers_file(folder, name).unlink(missing_ok=True)
        for old in (folder / "tables").glob(f"{name}_[0-9]*.csv"):
            old.unlink()
    for spec in (folder / "figures").glob("*.json"):
        if f'"{_SHARPEN}"' in spec.read_text():
            for file in (spec, *(spec.with_suffix(f".{kind}") for kind in drawing.FORMATS)):
                file.unlink(missing_ok=True)


def _write_files(one: _Experiment, out: Path, command: str | None) -> None:
    """Figures, tables and numbers of an experiment."""
    folder = out / one.place
    for name, part in one.parts.items():
        for drawn in part.figures:
            about = {"runs": list(drawn.data), "law": drawn.law, _SHARPEN: drawn.sharpen}
            drawing.save(drawn.spec, folder / "figures", drawn.name)
            write_json(folder / "figures" / f"{drawn.name}.json", drawn.spec | {"usermeta": about})
        for number, rows in enumerate(tables.read(part.blocks), 1):
            file = folder / "tables" / f"{name}_{number}.csv"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, tables.csv_text(rows))
        if part.numbers is not None:
            write_json(_numbers_file(folder, name), part.numbers | {"command": command})


def _numbers_file(folder: Path, name: str) -> Path:
    return folder / ("fit.json" if name == "chinchilla" else f"{name}.json")


def _write_constants(done: Sequence[_Experiment], out: Path, command: str | None) -> None:
    found = {one.name: dict.fromkeys(c for part in one.parts.values() for c in part.constants) for one in done}
    found = {name: constants for name, constants in found.items() if constants}
    if found:
        write_atomic(out / "constants.tex", tables.latex(found, command))
    else:
        (out / "constants.tex").unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------- page


def _page(done: Sequence[_Experiment], strays: int) -> str:
    several = len(done) > 1
    body: list[str] = []
    listed: list[tuple[str, str, Sequence[tuple[str, str]]]] = []
    for one in done:
        if several:
            blocks, sections = _placed(one, one.parts, 3)
            counts = f'<p class="quiet">{_counts(one.runs)}</p>' if len(one.runs) else ""
            opened = f'<section class="experiment" id="{one.place}"><h2>{escape(one.name)}</h2>{counts}'
            body += [opened, bullets(one.answers), *blocks, "</section>"]
            listed.append((one.place, escape(one.name), sections))
        else:
            rest = bullets(one.answers[_LEAD:])
            more = {"rest": Section([], [section("What else they say", rest)])} if rest else {}
            blocks, sections = _placed(one, more | one.parts, 2)
            body += blocks
            listed += [(at, title, ()) for at, title in sections]
    subtitle = _counts(pd.concat([one.runs for one in done], ignore_index=True))
    if strays:
        subtitle += f"; {strays} more lie in no experiment (no sweep.json beside them) and are not shown"
    names = [one.name for one in done]
    return page(
        title=f"Report of {', '.join(names[:-1])} and {names[-1]}" if several else f"Runs in {names[0]}",
        subtitle=subtitle,
        lead=bullets(_lead(done)),
        contents=contents(listed),
        body=body,
        foot=_FOOT,
    )


def _lead(done: Sequence[_Experiment]) -> list[str]:
    """The sentences that the page opens with: the first of every experiment, then the second ones, as many as fit."""
    first = sorted(_in_turn([one.answers for one in done])[: max(_LEAD, len(done))], key=lambda one: one[0])
    if len(done) == 1:
        return [answer for _, answer in first]
    return [f'<a href="#{done[k].place}">{escape(done[k].name)}</a>: {answer}' for k, answer in first]


def _in_turn(lists: Sequence[Sequence[str]]) -> list[tuple[int, str]]:
    """The first of each list, then the second of each, and so on, with the number of the list."""
    ranks = range(max(map(len, lists), default=0))
    return [(k, answers[rank]) for rank in ranks for k, answers in enumerate(lists) if rank < len(answers)]


def _placed(one: _Experiment, parts: dict[str, Section], level: int) -> tuple[list[str], list[tuple[str, str]]]:
    """The blocks of an experiment, and the (id, title) of its sections."""
    blocks: list[str] = []
    sections: list[tuple[str, str]] = []
    for name, part in parts.items():
        about = {drawn.name: _about(drawn, one) for drawn in part.figures}
        there = placed(part.blocks, one.place, level, about, name, len(sections) + 1)
        blocks += there.blocks
        sections += there.sections
    return blocks, sections


def _about(drawn: Figure, one: _Experiment) -> str:
    """What is said below a figure: its data, its law, what would sharpen it, its files."""
    said = []
    if drawn.data:
        said.append(f"Data: {_named(drawn.data, one.runs)}.")
    if drawn.law:
        said.append(f"Law: {math(drawn.law)}")
    if drawn.sharpen:
        said.append(f"To sharpen it: {math(drawn.sharpen)}")
    links = " &middot; ".join(
        f'<a href="{one.place}figures/{drawn.name}.{kind}">{kind.upper()}</a>' for kind in (*drawing.FORMATS, "json")
    )
    return "".join(f'<span class="about">{line}</span>' for line in [*said, links])


def _named(data: Iterable[str], runs: pd.DataFrame) -> str:
    """12 runs (r0a, r0b and 10 more), 3 seeds."""
    ids = list(dict.fromkeys(data))
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    text = f"{len(ids)} run{'s' if len(ids) > 1 else ''} ({escape(', '.join(ids[:_NAMED]))}{more})"
    seeds = runs.loc[runs["run_id"].isin(ids), "seed"].nunique() if "seed" in runs else 0
    return text + (f", {seeds} seed{'s' if seeds > 1 else ''}" if seeds else "")


def _counts(runs: pd.DataFrame) -> str:
    counts = runs["status"].value_counts()
    listed = ", ".join(f"{count} {status}" for status, count in counts.items())
    flops = pd.to_numeric(runs.get("own_flops"), errors="coerce").sum()
    return f"{len(runs)} runs ({escape(listed)}), {flops:.2g} training FLOPs in all".replace("e+", "e")
