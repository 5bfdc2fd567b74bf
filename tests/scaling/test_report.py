import json
from html.parser import HTMLParser

import pandas as pd
import pytest

from scaling.drawing import FORMATS
from scaling.reports.page import Cell, math, table
from scaling.reports.records import Settings
from scaling.reports.write import write_report
from scaling.wording import flops, short, three

QUICK = Settings(starts=32, bootstrap=60)


class Links(HTMLParser):
    """Everything on a page that a browser would load or follow, and its text."""

    def __init__(self, text):
        super().__init__()
        self.loaded, self.followed, self.text, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name == "href" and tag == "a":
                self.followed.append(value)
            elif name in ("src", "href", "data", "srcset"):
                self.loaded.append(value)

    def handle_data(self, data):
        if self.tags and self.tags[-1] not in ("script", "style"):
            self.text.append(data)


@pytest.fixture(scope="module")
def written(make_runs, tmp_path_factory):
    runs = make_runs(tmp_path_factory.mktemp("report") / "small", bad=True)
    return write_report(runs, settings=QUICK, command="fulcrum report")


@pytest.fixture(scope="module")
def page(written):
    return Links(written.path.read_text())


def test_the_page_needs_nothing_but_itself(page, written):
    assert page.loaded == []
    files = [link for link in page.followed if not link.startswith("#")]
    assert files and all((written.path.parent / link).exists() for link in files)
    assert "vegaEmbed" in written.path.read_text()


def test_every_figure_is_there_in_every_format(written):
    starts = {"svg": b"<svg", "pdf": b"%PDF", "png": b"\x89PNG"}
    for name in ("curves", "residuals", "law", "allocation"):
        for kind in FORMATS:
            assert (written.path.parent / "figures" / f"{name}.{kind}").read_bytes().startswith(starts[kind]), name


def test_the_page_opens_with_the_answers(page):
    text = " ".join(page.text)
    for words in (
        "10 runs of",
        "90 % intervals",
        "best model has",
        "the law predicts them with an error of",
        "unigram entropy",
    ):
        assert words in text, words
    assert "2 of 12 runs did not complete (1 diverged, 1 unfinished)" in text


def test_all_runs_are_listed_also_those_that_failed(written):
    text = written.path.read_text()
    assert all(f"r{k:011x}" in text for k in range(12)) and text.count('<table class="sortable">') == 1


def test_the_law_is_kept_as_numbers_too(written):
    numbers = json.loads((written.path.parent / "fit.json").read_text())
    assert numbers["command"] == "fulcrum report" and numbers["excluded"] == {"diverged": 1, "unfinished": 1}
    assert len(numbers["allocation"]["rows"]) == 6 and numbers["holdout"]["worst_error"] > 0
    assert f"{numbers['params']['alpha']:.3g}" in written.line


def test_tables_and_constants_have_the_numbers_of_the_law_in_full(written):
    folder = written.path.parent
    numbers = json.loads((folder / "fit.json").read_text())
    law = pd.read_csv(folder / "tables" / "chinchilla_1.csv").set_index("parameter")
    assert law["value"].to_dict() == numbers["params"]
    assert list(law.loc["alpha", ["90 % interval low", "90 % interval high"]]) == numbers["interval"]["alpha"]
    tex = (folder / "constants.tex").read_text()
    assert tex.count("Chinchilla &") == 1 and r"$\beta$" in tex and "approach 3" in tex


def test_figures_of_the_law_name_its_runs_and_those_of_the_curves_all(written):
    text = written.path.read_text()
    assert text.count("Law: L = ") == text.count("Data: 10 runs") == 3 and text.count("Data: 12 runs") == 1
    kept = json.loads((written.path.parent / "figures" / "law.json").read_text())["usermeta"]
    assert len(kept["runs"]) == 10 and f"r{3:011x}" not in kept["runs"]  # it diverged


def test_too_few_runs_still_give_a_report_that_says_why_there_is_no_law(make_runs, tmp_path):
    runs = make_runs(tmp_path / "few")
    for folder in sorted((runs / "sweep").iterdir())[3:]:
        (folder / "run.json").unlink()
        (folder / "metrics.jsonl").unlink()
    report = write_report(runs, settings=QUICK)
    text = report.path.read_text()
    assert (
        report.line == "" and "No Chinchilla law was fitted" in text and (runs / "report/figures/curves.svg").exists()
    )


def test_sections_are_chosen_and_unknown_ones_refused(runs_folder, tmp_path):
    report = write_report(runs_folder, sections=[], settings=QUICK, out=tmp_path)
    assert [p.name for p in sorted((tmp_path / "figures").iterdir())] == [
        f"curves.{k}" for k in ("json", "pdf", "png", "svg")
    ]
    assert report.line == ""
    with pytest.raises(ValueError, match=r"no section 'chinchila'; there are .*chinchilla, "):
        write_report(runs_folder, sections=["chinchila"], settings=QUICK, out=tmp_path)


def test_text_from_records_cannot_become_markup():
    text = table(["name"], [[Cell("<script>alert(1)</script>")]])
    assert "<script>" not in text and "&lt;script&gt;" in text
    assert math("alpha N^0.34") == "&alpha; N<sup>0.34</sup>"


@pytest.mark.parametrize(
    ("count", "text"), [(52_300, "52k"), (1_234_567, "1.2M"), (999_960, "1.0M"), (3e9, "3.0B"), (940, "940")]
)
def test_counts_are_short(count, text):
    assert short(count) == text


def test_numbers_keep_their_digits():
    assert [three(x) for x in (2.0, 22.22, 493.4)] == ["2.00", "22.2", "493"] and flops(1.24e15) == "1.2e15"
