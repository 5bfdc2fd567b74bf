from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.points import expand, listed

pytestmark = pytest.mark.usefixtures("hydra_conf")

OVERRIDES = st.lists(st.sampled_from(["seed=1", "model=tiny", "peak_lr=1e-2", "label=a"]), min_size=1, max_size=3)


def write(folder: Path, content: object, name: str = "next.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(content))
    return path


@given(
    common=st.lists(st.sampled_from(["total_tokens=6400", "launch.parallel=2"]), max_size=2),
    own=st.lists(OVERRIDES, min_size=1, max_size=4),
)
@settings(max_examples=15)
def test_each_list_of_the_file_is_a_point_after_what_is_common(tmp_path_factory, common, own):
    path = write(tmp_path_factory.mktemp("points"), own)
    assert listed([[*common, f"points={path}"]]) == [[*common, *each] for each in own]
    assert listed([[f"points={path}", *common]]) == [[*common, *each] for each in own]


def test_a_point_of_the_file_overrules_what_is_common(tiny, tmp_path):
    path = write(tmp_path, [["seed=7"], ["peak_lr=2e-2"]])
    first, second = expand([[*tiny, "seed=3", f"points={path}"]])
    assert first.config["seed"] == 7 and second.config["seed"] == 3
    assert second.config["peak_lr"] == 2e-2 and first.config["peak_lr"] == 1e-2


def test_runs_of_a_file_are_those_of_the_same_overrides_given_directly(tiny, tmp_path):
    own = [["seed=1"], ["seed=2", "total_tokens=12800"]]
    by_file = expand([[*tiny, f"points={write(tmp_path, own)}"]])
    direct = expand([[*tiny, *each] for each in own])
    assert [point.run_id for point in by_file] == [point.run_id for point in direct]
    assert [point.folder for point in by_file] == [point.folder for point in direct]


def test_the_file_itself_is_no_part_of_what_a_run_is_or_of_how_it_was_asked_for(tiny, tmp_path):
    (direct,) = expand([[*tiny, "seed=5"]])
    for name in ("one.yaml", "other.yaml"):
        (point,) = expand([[*tiny, f"points={write(tmp_path, [['seed=5']], name)}"]])
        assert point.config["launch"]["overrides"] == [*tiny, "seed=5"]
        assert point.config == direct.config and point.run_id == direct.run_id


def test_a_sweep_multiplies_a_file(tiny, tmp_path):
    path = write(tmp_path, [["seed=1"], ["seed=2"]])
    found = expand([[*tiny, f"peak_lr={rate}", f"points={path}"] for rate in ("1e-2", "2e-2")])
    assert [(p.config["peak_lr"], p.config["seed"]) for p in found] == [(1e-2, 1), (1e-2, 2), (2e-2, 1), (2e-2, 2)]


def test_points_with_and_without_a_file_stand_side_by_side(tiny, tmp_path):
    path = write(tmp_path, [["seed=1"], ["seed=2"]])
    found = expand([[*tiny, "seed=0"], [*tiny, f"points={path}"], [*tiny, "seed=3"]])
    assert [point.config["seed"] for point in found] == [0, 1, 2, 3]


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_a_file_may_be_named_with_hydras_plus_signs(tmp_path, plus):
    path = write(tmp_path, [["seed=1"]])
    assert listed([[f"{plus}points={path}"]]) == [["seed=1"]]


def test_a_path_with_an_equals_sign_is_read(tmp_path):
    path = write(tmp_path, [["seed=1"]], "budget=1e15.yaml")
    assert listed([[f"points={path}"]]) == [["seed=1"]]


def test_keys_that_only_begin_alike_are_ordinary_overrides():
    assert listed([["points_of_view=1", "data.points=2"]]) == [["points_of_view=1", "data.points=2"]]


def test_runs_that_a_file_repeats_are_refused(tiny, tmp_path):
    path = write(tmp_path, [["seed=1"], ["seed=1"]])
    with pytest.raises(ValueError, match="is the same run as"):
        expand([[*tiny, f"points={path}"]])


def test_a_bad_point_of_the_file_is_named_by_its_overrides_and_nothing_starts(tiny, tmp_path):
    path = write(tmp_path, [["seed=1"], ["model.n_heads=3"], ["no_such_key=1"]])
    with pytest.raises(ValueError) as error:
        expand([[*tiny, f"points={path}"]])
    said = str(error.value)
    assert "2 of 3 points are not valid; nothing was started" in said
    assert "model.n_heads=3 does not divide" in said and "no_such_key" in said


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_missing_file_is_refused_with_what_it_should_be(tmp_path, name):
    with pytest.raises(ValueError, match=r"points=.*: no such file\. It is a YAML list of override lists, one a point"):
        listed([[f"points={tmp_path / name}"]])


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        {},
        "seed=1",
        3,
        ["seed=1", "seed=2"],
        [["seed=1"], []],
        [["seed=1"], "seed=2"],
        [[1]],
        [[{"seed": 1}]],
        {"points": [["seed=1"]]},
    ],
)
def test_a_file_of_another_form_is_refused_with_the_right_one(tmp_path, content):
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=r"points=.*next\.yaml must hold a list of lists of overrides, as `- \[model="):
        listed([[f"points={path}"]])


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "next.yaml").write_text("")
    with pytest.raises(ValueError, match="must hold a list of lists of overrides"):
        listed([[f"points={tmp_path}/next.yaml"]])
