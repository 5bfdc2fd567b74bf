"""One page on several experiments, and what lies beside it: links, names, answers, data of figures, CSV, LaTeX."""

import csv
import io
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from data.files import read_json, write_json
from scaling.commands import report_command
from scaling.fit import fit
from scaling.laws import Chinchilla
from scaling.reports import write
from scaling.reports.opening import curves_section
from scaling.reports.page import Cell, Constant, Figure, Section, figure, interval, placed, section, table
from scaling.reports.page import math as html_of
from scaling.reports.records import Records, Settings
from scaling.reports.tables import constants_of, csv_text, latex, read, symbol
from scaling.reports.write import _lead, experiments, write_report

QUICK = Settings(starts=16, bootstrap=40)
FLAT = {"mark": "point", "data": {"values": [{"x": 1}]}, "encoding": {"x": {"field": "x", "type": "quantitative"}}}


class Page(HTMLParser):
    """The ids, links, headings and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.heads, self.charts, self.tag = [], [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tag = tag
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if tag == "a" else []
        self.charts += [given["data-chart"]] if "data-chart" in given else []

    def handle_data(self, data):
        if self.tag in ("h1", "h2", "h3") and data.strip():
            self.heads.append((self.tag, data))
            self.tag = ""


def tiny(name):
    """A section with one figure and two tables, of two runs."""

    def made(records):
        ids = list(records.runs["run_id"])
        drawn = Figure("chart", FLAT, "Points.", ids, law="L = 3 with a^2", sharpen="more <runs>.")
        tables = table(["x", "90 %"], [[Cell("1.2k", 1234.5), interval(0.1, 0.25)]]), table(["y"], [[Cell("a")]])
        found = [f"{name} {k} of {len(ids)} runs." for k in range(5)]
        constants = 2 * [Constant("Law & order", "R_N", 5.3, 1.0, 9.0)]  # two analyses may fit the same
        return Section(found, [section("Found", figure(drawn), *tables)], [drawn], {"x": 1}, f"{name}!", constants)

    return made


@pytest.fixture(scope="module")
def house(make_point, tmp_path_factory):
    """Two experiments of two runs each with sections of their own, one that has no run yet, and a run in none."""
    folder = tmp_path_factory.mktemp("runs")
    for name, part in (("one", "tiny"), ("two", "other"), ("none", "tiny")):
        (folder / name).mkdir()
        for seed in range(2 if name != "none" else 0):
            rows = [{"step": k, "tokens": 128 * k, "batch_size": 1, "lr": 1.0, "loss": 5.0 - k} for k in (1, 2, 3)]
            rows[-1]["eval_loss"] = 2.0
            config = {"seed": seed, "total_tokens": 384, "sequence_length": 128, "peak_lr": 1.0}
            make_point(folder / name, config, rows)
        write_json(folder / name / "sweep.json", {"report": [part]})
    make_point(folder / "stray", {"seed": 0, "total_tokens": 384, "sequence_length": 128}, rows)
    return folder


@pytest.fixture(scope="module")
def sections():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("tiny", "other"):
            patch.setitem(write.SECTIONS, name, tiny(name))
        yield


@pytest.fixture(scope="module")
def report(house, sections, tmp_path_factory):
    return write_report(house, settings=QUICK, out=tmp_path_factory.mktemp("out"), command="fulcrum report")


@pytest.fixture(scope="module")
def text(report):
    return report.path.read_text()


def test_every_experiment_has_its_part_with_its_own_sections(text, report):
    heads = Page(text).heads
    parts = [head for tag, head in heads if tag == "h2"]
    assert parts == ["What the runs say", "none", "one", "two"]
    of_one = heads[heads.index(("h2", "one")) + 1 : heads.index(("h2", "two"))]
    assert of_one == [("h3", name) for name in ("Found", "Loss curves", "The runs")]
    assert report.line == "tiny!\nother!"


def test_no_two_things_on_the_page_share_an_id_and_every_link_leads_somewhere(text, report):
    page = Page(text)
    assert len(page.ids) == len(set(page.ids)) and len(page.charts) == len(set(page.charts)) == 4
    assert set(page.charts) <= set(page.ids)
    within = {link[1:] for link in page.links if link.startswith("#")}
    assert within and within <= set(page.ids)
    files = [link for link in page.links if not link.startswith("#")]
    assert len(files) == len(set(files)) and all((report.path.parent / file).is_file() for file in files)
    assert "one/figures/chart.pdf" in files and "two/tables/other_2.csv" in files


def test_an_experiment_without_runs_says_so_and_the_others_stand(text):
    assert "No report:" in text and "holds no runs" in text


def test_runs_in_no_experiment_are_counted(text):
    assert "1 more lie in no experiment" in text


def test_the_page_opens_with_six_sentences_fairly_shared(text):
    lead = text[text.index('<section class="answers">') : text.index("<nav")]
    said = re.findall(r"<li>(.*?)</li>", lead)
    assert len(said) == 6
    named = [re.search(r'href="#(\w+)/"', one)[1] for one in said]
    assert named == ["none", "one", "one", "one", "two", "two"]
    assert [re.sub("<.*?>", "", one) for one in said][4:] == ["two: other 0 of 2 runs.", "two: other 1 of 2 runs."]


@given(st.lists(st.lists(st.text(min_size=1), min_size=1, max_size=9), min_size=1, max_size=9))
def test_every_experiment_has_its_first_sentence_at_the_top(lists):
    class Said:
        def __init__(self, k, answers):
            self.name = self.place = f"e{k}"
            self.answers = answers

    given_to = [Said(k, answers) for k, answers in enumerate(lists)]
    lead = _lead(given_to)
    assert len(lead) == min(sum(map(len, lists)), max(6, len(lists)))
    if len(lists) > 1:
        counts = [sum(one.startswith(f'<a href="#e{k}">') for one in lead) for k in range(len(lists))]
        assert min(counts) >= 1
        assert all(
            count == len(answers) or count >= max(counts) - 1 for count, answers in zip(counts, lists, strict=True)
        )
    else:
        assert lead == lists[0][:6]


@pytest.fixture(scope="module")
def alone(house, sections, tmp_path_factory):
    return write_report(house / "one", ["tiny", "other"], QUICK, tmp_path_factory.mktemp("alone")).path


def test_one_experiment_has_its_files_beside_the_page_and_says_what_did_not_fit_on_top(alone):
    text = alone.read_text()
    assert (alone.parent / "tables" / "other_1.csv").is_file() and (alone.parent / "tiny.json").is_file()
    titles = [title for tag, title in Page(text).heads if tag == "h2"]
    assert titles[:3] == ["What the runs say", "What else they say", "Found"]
    assert text.count("tiny 4 of 2 runs.") == 1


def test_below_a_figure_stand_its_data_its_law_and_what_would_sharpen_it(text, report):
    caption = re.search(r"<figcaption>Points\.(.*?)</figcaption>", text)[1]
    assert "Data: 2 runs (r00000000000, r00000000001), 2 seeds." in caption
    assert "Law: L = 3 with a<sup>2</sup>" in caption and "To sharpen it: more &lt;runs&gt;." in caption
    kept = read_json(report.path.parent / "one" / "figures" / "chart.json")
    assert kept["usermeta"]["runs"] == ["r00000000000", "r00000000001"] and kept["mark"] == "point"


def test_curves_of_runs_that_differ_in_an_odd_rate_are_drawn_in_its_colour():
    runs = pd.DataFrame({"run_id": ["a", "b"], "N": 1.0, "peak_lr": [0.0438106924373709, 0.02], "seed": 0})
    curves = pd.DataFrame({"run_id": ["a", "a", "b", "b"], "tokens": [1, 2, 1, 2], "loss": 3.0, "flops": 1.0})
    (drawn,) = curves_section(Records(runs, curves, QUICK), "").figures
    shown = {row["peak_lr"] for rows in drawn.spec["datasets"].values() for row in rows if "peak_lr" in row}
    assert shown == {0.04381, 0.02} and '"domain": [0.02, 0.04381]' in json.dumps(drawn.spec)


def test_a_figure_of_many_runs_names_two_and_counts_all():
    runs = pd.DataFrame({"run_id": [f"r{k}" for k in range(9)], "seed": [0, 1, 2] * 3})
    assert write._named(runs["run_id"], runs) == "9 runs (r0, r1 and 7 more), 3 seeds"
    assert write._named(["r3", "r3"], runs) == "1 run (r3), 1 seed"


def test_a_figure_that_a_section_does_not_list_is_an_error():
    with pytest.raises(KeyError):
        placed([figure(Figure("forgotten", FLAT, ""))], "", 2, {}, "x")


# --- which experiments -------------------------------------------------------------------------------------------


def test_folders_of_experiments_are_found_once_and_in_order(house, tmp_path):
    folders, strays = experiments([house / "two", house])
    assert [folder.name for folder in folders] == ["two", "none", "one"] and strays == 1
    assert experiments([house / "stray"]) == ([house / "stray"], 0)
    with pytest.raises(ValueError, match="no such folder"):
        experiments([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="holds no runs"):
        write_report([house / "none"], sections=[])


def test_experiments_of_one_name_are_told_apart_on_the_page_and_on_the_disk(tmp_path):
    folders = [tmp_path / "a" / "x", tmp_path / "b" / "x", tmp_path / "b" / "y"]
    names = write._names(folders)
    assert names == [str(folders[0]), str(folders[1]), "y"] and len(set(write._file_names(names))) == 3
    assert write._file_names(["a b", "a/b", "../c", "a-b"]) == ["a-b", "a-b_2", "c", "a-b_3"]


def test_numbers_and_tables_of_an_earlier_report_do_not_stay(house, alone, tmp_path):
    shutil.copytree(alone.parent, tmp_path, dirs_exist_ok=True)
    assert (tmp_path / "tables" / "tiny_2.csv").exists() and (tmp_path / "constants.tex").exists()
    shutil.copytree(alone.parent, tmp_path / "gone")  # an experiment that is no longer on the page
    own = [tmp_path / "figures" / name for name in ("mine.json", "mine.svg")]
    for file in own:
        file.write_text("{}")
    write_report(house / "one", [], QUICK, tmp_path)
    assert all(file.exists() for file in own) and not list(tmp_path.glob("**/chart.*"))
    assert not (tmp_path / "gone" / "tiny.json").exists() and not list(tmp_path.glob("gone/tables/*"))
    assert not list(tmp_path.glob("tables/tiny*")) and not (tmp_path / "tiny.json").exists()
    assert not (tmp_path / "constants.tex").exists() and (tmp_path / "tables" / "runs_1.csv").exists()


@pytest.mark.parametrize(("runs", "paths"), [("runs/cbs", ["runs/cbs"]), (["a", "b/c"], ["a", "b/c"])])
def test_the_command_takes_one_folder_or_a_list(runs, paths, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(write, "write_report", lambda *given: asked.append(given) or write.Report(Path("x"), ""))
    options = {"runs": runs, "sections": None, "out": None, "huber": 1, "starts": 1, "bootstrap": 1, "seed": 0}
    report_command(OmegaConf.create(options | {"holdout": 0.2}))
    assert list(map(str, asked[0][0])) == paths and "Report: x" in capsys.readouterr().out


# --- CSV ---------------------------------------------------------------------------------------------------------

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
WORDS = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1)


@given(st.lists(st.tuples(WORDS, NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=4))
def test_a_table_read_back_from_the_page_has_the_numbers_to_the_last_bit(rows):
    html = table(
        ["name^2", "alpha", "90 %"], [[Cell(a), Cell(f"{b:.1g}", b), Cell("x", low, high)] for a, b, low, high in rows]
    )
    (found,) = read([section("A title", html)])
    header, *lines = csv.reader(io.StringIO(csv_text(found)))
    assert header == ["name^2", "alpha", "90 % low", "90 % high"]
    assert [tuple(map(float, line[1:])) for line in lines] == [row[1:] for row in rows]


def test_text_survives_the_page_and_commas_the_csv():
    (found,) = read([table(["a", "b"], [[Cell("x < y & 'z', \"w\""), Cell("N^0.34, alpha")]])])
    assert list(csv.reader(io.StringIO(csv_text(found))))[1] == ["x < y & 'z', \"w\"", "N^0.34, alpha"]


def test_numbers_of_numpy_are_numbers_on_the_page_too():
    html = table(["x"], [[Cell("1", np.float64(1.5))], [Cell("2", np.int64(2))]])
    assert 'data-value="1.5"' in html and 'data-value="2.0"' in html


def test_missing_values_are_empty_and_equal_headings_are_told_apart():
    rows = [[Cell("1", 1.0), interval(0.0, 2.0), Cell("\N{EN DASH}"), Cell("\N{EN DASH}")]]
    (found,) = read([table(["N", "90 %", "D", "90 %"], rows)])
    assert csv_text(found) == 'N,"N, 90 % low","N, 90 % high",D,"D, 90 %"\n1.0,0.0,2.0,,\n'
    (found,) = read([table(["N", "x", "x", "x"], [[Cell(name) for name in "abcd"]])])
    assert csv_text(found).splitlines()[0] == 'N,"N, x","x, x","x, x (2)"'


def test_a_full_stop_after_an_exponent_is_not_raised():
    assert html_of("N^0.5. And D^-0.34, B^x") == "N<sup>0.5</sup>. And D<sup>-0.34</sup>, B<sup>x</sup>"


def test_the_report_keeps_the_numbers_behind_the_rounded_text(report):
    folder = report.path.parent / "one" / "tables"
    assert (folder / "tiny_1.csv").read_text() == "x,90 % low,90 % high\n1234.5,0.1,0.25\n"
    runs = pd.read_csv(folder / "runs_1.csv")
    assert list(runs["run"]) == ["r00000000000", "r00000000001"] and (runs["held-out loss"] == 2.0).all()


# --- LaTeX -------------------------------------------------------------------------------------------------------


def test_the_constants_of_a_fit_are_its_parameters_and_intervals():
    rng = np.random.default_rng(0)
    n, d = (x.ravel() for x in np.meshgrid(np.geomspace(1e6, 1e9, 5), np.geomspace(1e8, 1e11, 5)))
    truth = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 900.0, "beta": 0.3}
    loss = Chinchilla().predict(truth, {"N": n, "D": d}) * np.exp(0.01 * rng.standard_normal(25))
    fitted = fit(Chinchilla(), pd.DataFrame({"N": n, "D": d, "loss": loss}), starts=16, fixed={"E": 1.7})
    for drawn in (fitted, fitted.bootstrap(50)):
        found = {one.name: one for one in constants_of(drawn, "Law 1")}
        assert set(found) == {"A", "alpha", "B", "beta"}
        assert all(one.low < one.value < one.high and one.law == "Law 1" for one in found.values())
    assert found["alpha"].value == fitted.params["alpha"]
    assert (found["A"].low, found["A"].high) == drawn.intervals()["A"]


def test_constants_are_a_tabular_that_tex_can_read(report):
    tex = (report.path.parent / "constants.tex").read_text()
    lines = [line for line in tex.splitlines() if not line.startswith("%")]
    assert r"Law \& order & $R_{N}$ & $5.3$ & $1$ to $9$ (90\,\%) \\" in tex
    assert lines[0] == r"\begin{tabular}{lllll}" and lines[-1] == r"\end{tabular}"
    rows = [line for line in lines if line.endswith(r"\\")]
    assert len(rows) == 3 and all(len(re.findall(r"(?<!\\)&", row)) == 4 for row in rows)


@given(st.text(), st.floats(allow_nan=True, allow_infinity=True), NUMBERS, st.booleans())
def test_nothing_in_a_constant_is_left_for_tex_to_trip_over(law, value, low, pinned):
    tex = latex({"an_experiment": [Constant(law, "a_C", value, low, low + 1, 0.95, pinned)]}, "fulcrum\nreport")
    body = "".join(line for line in re.split(r"\n", tex.replace(law, law)) if not line.startswith("%"))
    bare = re.sub(r"\\([&%$#_{}]|[a-zA-Z]+)", "", body)
    assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0
    assert not re.search(r"[#~%<>|]|\^(?!\{)|_(?!\{)|nan|inf|e[+-]\d", bare.replace(law, ""))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_tex_does_read_the_tabular(tmp_path):
    names = ("alpha", "R_N", "log_A", "C_web_2", "a_beta", "x^y", "b~c")
    odd = [Constant("100 % & #1 {x} $y$ a_b ~ ^2 <\\>", name, 1e-9, -math.inf, 5.0, 0.95, name > "b") for name in names]
    (tmp_path / "constants.tex").write_text(latex({"a_b": odd, "c": [Constant("L", "A", *3 * [math.nan])]}))
    whole = r"\documentclass{article}\begin{document}\input{constants.tex}\end{document}"
    done = subprocess.run(["pdflatex", "-halt-on-error", whole], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "LaTeX Warning: Command" not in done.stdout, done.stdout


def test_names_of_parameters_are_set_as_mathematics():
    names = {"alpha": r"$\alpha$", "R_N": "$R_{N}$", "a_beta": r"$a_{\beta}$", "Bcrit": r"$\mathrm{Bcrit}$"}
    assert {name: symbol(name) for name in names} == names
    assert symbol("gamma_1") == r"$\gamma_{1}$" and symbol("C_web_2") == r"$C_{\mathrm{web\_2}}$"


def test_a_number_has_four_digits_and_no_e():
    tex = latex({"x": [Constant("L", "A", 123456789.0, 1.2e-7, float("nan"))]})
    assert r"$1.235 \times 10^{8}$ & $1.2 \times 10^{-7}$ to -- (90\,\%)" in tex
