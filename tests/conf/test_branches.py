"""Branches as a user asks for them: what the parent is, which checkpoint it keeps, and what is refused."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from conf.branches import parent_overrides, quoted
from conf.points import compose_config, expand
from optim.plan import plan_of

LENGTH, BATCH = 32, 6
STEP = LENGTH * BATCH
TRUNK = ["schedule=constant", "total_tokens=19200"]
DECAY = ["schedule=wsd", "warmup_tokens=640"]


@pytest.fixture
def branch(hydra_conf, tiny):
    """Overrides of a decay over the last of 6400 tokens, from a longer run at a constant rate."""
    return [*tiny, *DECAY, f"parent.tokens={20 * STEP}", f"parent.overrides=[{','.join(TRUNK)}]"]


def trunk(tiny):
    return [*(text for text in tiny if not text.startswith("total_tokens")), "warmup_tokens=640", *TRUNK]


def have(point, status=None, checkpoints=(), config=True):
    """The record of `point` as training would have left it."""
    for tokens in checkpoints:
        folder = point.folder / "checkpoints" / f"{tokens:012d}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
    point.folder.mkdir(parents=True, exist_ok=True)
    if config:
        (point.folder / "config.yaml").write_text(yaml.safe_dump(point.config))
    if status:
        (point.folder / "summary.json").write_text(json.dumps({"status": status}))


def test_a_branch_brings_its_parent_and_goes_on_at_its_tokens(tiny, branch):
    parent, child = expand([branch])
    (alone,) = expand([trunk(tiny)])
    assert parent.run_id == alone.run_id, "the parent is the run that its overrides alone would be"
    assert child.config["parent"] == {"run_id": parent.run_id, "tokens": 20 * STEP}
    assert child.parent == parent.folder and parent.parent is None
    assert parent.config["launch"]["checkpoint"]["marks"] == [20 * STEP]
    assert child.plan == plan_of(child.config) and child.plan.start_tokens == 20 * STEP
    assert child.plan.serial_steps * STEP >= 6400 - 20 * STEP > (child.plan.serial_steps - 1) * STEP
    assert child.flops == child.shape.flops_per_token(LENGTH) * (6400 - 20 * STEP), "its own tokens alone"


def test_what_a_branch_is_depends_on_its_parent_and_on_where_it_starts(tiny, branch):
    ids = {expand([branch])[-1].run_id, expand([[*tiny, *DECAY]])[0].run_id}
    ids.add(expand([[*branch, f"parent.tokens={10 * STEP}"]])[-1].run_id)
    ids.add(expand([[*branch, "parent.overrides=[schedule=constant,total_tokens=19200,peak_lr=2e-2]"]])[-1].run_id)
    assert len(ids) == 4
    same = [text for text in branch if not text.startswith("parent.tokens")]
    assert expand([[*same, f"parent.tokens={20 * STEP}.0", "launch.parallel=2"]])[-1].run_id in ids


def test_a_run_without_a_parent_is_what_it_always_was(tiny, hydra_conf):
    (plain,) = expand([tiny])
    assert plain.config["parent"] is None
    for spelled in ("parent=null", "parent.tokens=null"):
        assert expand([[*tiny, spelled]])[0].run_id == plain.run_id


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_a_parent_may_be_named_with_hydras_plus_signs(tiny, branch, plus):
    spelled = [f"{plus}{text}" if text.startswith("parent.") else text for text in branch]
    assert expand([spelled])[-1].run_id == expand([branch])[-1].run_id


@given(st.integers(2 * STEP, 33 * STEP + 100))
def test_a_branch_starts_at_the_last_step_that_its_parent_has_made_by_then(tokens):
    from optim.plan import Plan
    from optim.ramps import ConstantBatch
    from optim.schedules import Constant

    plan = Plan(6400, LENGTH, 0.1, Constant(), ConstantBatch(BATCH))
    start = plan.boundary(tokens)
    ends = [*plan.steps().tokens_before[1:], 6400]
    assert start == max(end for end in ends if end <= tokens)


def test_children_of_one_parent_share_it_and_it_keeps_a_checkpoint_for_each(tiny, branch):
    others = [text for text in branch if not text.startswith(("parent.tokens", "total_tokens"))]
    grid = [
        [*others, f"total_tokens={total}", "parent.tokens=${mul:0.8,${total_tokens}}"] for total in (6400, 12800, 9600)
    ]
    parent, *children = expand(grid)
    assert len(children) == 3 and {child.parent for child in children} == {parent.folder}
    marks = [int(0.8 * total) // STEP * STEP for total in (6400, 9600, 12800)]
    assert parent.config["launch"]["checkpoint"]["marks"] == marks
    assert [child.plan.start_tokens for child in children] == [marks[0], marks[2], marks[1]]


@pytest.mark.parametrize("first", [True, False])
def test_a_parent_that_is_asked_for_too_is_one_point(tiny, branch, first):
    grid = [trunk(tiny), branch]
    points = expand(grid if first else grid[::-1])
    assert len(points) == 2
    parent = points[0 if first else 1]
    assert parent.config["parent"] is None and parent.config["launch"]["checkpoint"]["marks"] == [20 * STEP]
    assert parent.config["launch"]["overrides"] == trunk(tiny), "as it was asked for"


def test_a_parent_may_be_a_branch(tiny, branch):
    earlier = [*branch[:-1], "parent.overrides=[schedule=constant,parent.tokens=2000,parent.overrides=[seed=0]]"]
    grandparent, parent, child = expand([earlier])
    assert child.parent == parent.folder and parent.parent == grandparent.folder and grandparent.parent is None
    assert parent.plan.start_tokens == 2000 // STEP * STEP and child.plan.start_tokens == 20 * STEP
    assert grandparent.config["schedule"] == parent.config["schedule"], "the grandparent is what its child says"


def test_a_branch_with_a_larger_batch_starts_within_what_would_be_one_of_its_own_steps(branch):
    smaller = f"parent.overrides=[{','.join(TRUNK)},ramp.batch_size=6]"
    parent, child = expand([[*branch, "ramp.batch_size=12", smaller, f"parent.tokens={9 * STEP}"]])
    assert parent.plan.at(0).batch_size == 6 and child.plan.start_tokens % (12 * LENGTH)
    steps = child.plan.steps()
    assert steps.tokens_before[0] == child.plan.start_tokens and set(steps.batch_size[:-1]) == {12}
    assert steps.batch_size.sum() * LENGTH == child.plan.final_tokens - child.plan.start_tokens


def test_an_experiment_may_name_the_parent(tmp_path, monkeypatch, tiny):
    """Its file is also the parent's experiment, which must not make the parent a branch of itself."""
    from hydra import initialize_config_module

    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "decays.yaml").write_text(
        "# @package _global_\nparent:\n  tokens: 4000\n  overrides: [schedule=constant]\n"
    )
    monkeypatch.chdir(tmp_path)
    with initialize_config_module("conf", version_base="1.3"):
        parent, child = expand([[*tiny, "schedule=linear", "experiment=decays"]])
        assert child.parent == parent.folder and parent.config["parent"] is None
        assert expand([parent.config["launch"]["overrides"]])[0].run_id == parent.run_id, "as it says it was asked for"
        deeper = "parent.overrides=[schedule=constant,parent.tokens=2000]"
        assert len(expand([[*tiny, "schedule=linear", "experiment=decays", deeper]])) == 3


def test_what_the_parent_says_replaces_the_key_and_what_lies_below_it():
    own = ["schedule=wsd", "schedule.decay_fraction=0.1", "+schedule_of_mine=1", "peak_lr=1", "++label=a"]
    assert parent_overrides(own, ["schedule=constant", "label=b"]) == [
        "+schedule_of_mine=1",
        "peak_lr=1",
        "schedule=constant",
        "label=b",
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("parent.overrides=[schedule=constant,total_tokens=4e6]", ["schedule=constant", "total_tokens=4e6"]),
        ("parent.overrides=[a.b=[1,2],'c=x,y',\"d=it's\"]", ["a.b=[1,2]", "c=x,y", "d=it's"]),
        ("parent.overrides=[parent.tokens=5,parent.overrides=[a='b,c']]",
         ["parent.tokens=5", "parent.overrides=[a='b,c']"]),
        ("parent.overrides=[total_tokens=${mul:2,${total_tokens}}]", ["total_tokens=2000000.0"]),
        ("parent.overrides=[]", []),
    ],
)  # fmt: skip
def test_overrides_of_the_parent_need_no_quotes(hydra_conf, text, value):
    assert compose_config([text, "parent.tokens=1"])["parent"]["overrides"] == value
    assert quoted(quoted(text)) == quoted(text)


def test_quotes_are_put_where_hydra_wants_them_and_nowhere_else():
    assert quoted("a=${mul:2,${b}},${c},3") == 'a="${mul:2,${b}}",${c},3'
    for text in ("seed=0,1", "--cfg", "a=${b}", "model.d_model=16", "~averages.tail", "data.sources.files.paths=[a,b]"):
        assert quoted(text) == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["parent.tokens=null"], "parent.overrides without parent.tokens"),
        (["parent.tokens=0"], "parent.tokens=0.0: use a positive number"),
        (["parent.tokens=100"], f"parent.tokens=100: the first step of the parent ends after {STEP} tokens"),
        (["parent.tokens=20000"], "parent.tokens=20000: the parent ends after 19200 tokens"),
        (["parent.tokens=6400"], "the 2 sequences of total_tokens=6400 after parent.tokens=6336"),
        (["parent.tokens=9600"], "parent.tokens=9600 leaves nothing of total_tokens=6400"),
        (["parent.overrides=[seed=1]"], "seed=0 in the branch and 1 in its parent"),
        (["parent.overrides=[model.d_model=32]"], "model.d_model=16 in the branch and 32 in its parent"),
        (["parent.overrides=[optimizer=lion]"], "optimizer._target_=optim.adamw.AdamW in the branch"),
        (["parent.overrides=[sequence_length=64]"], "sequence_length=32 in the branch and 64"),
        (["parent.overrides=[unique_tokens=3200]"], "unique_tokens=None in the branch and 3200"),
        (["parent.overrides=[data.heldout=0.2]"], "data.heldout=0.1 in the branch and 0.2"),
        (["parent.overrides=[precision=bf16]"], "precision=float32 in the branch and bf16"),
        (["parent.overrides=[launch.experiment=other]"], "Leave launch.runs and launch.experiment to the branch"),
        (["parent.overrides=[no_such_key=1]"], "no_such_key"),
        (["parent.overrides=[ramp.batch_size=0]"], "ramp.batch_size=0"),
        (["parent.nothing=1"], "nothing"),
        (["launch.checkpoint.marks=[100]"], "launch.checkpoint.marks=100"),
    ],
)
def test_branches_that_cannot_be_are_refused_with_the_reason(branch, changes, message):
    with pytest.raises(ValueError) as error:
        expand([[*branch, *changes]])
    assert message in str(error.value) and "nothing was started" in str(error.value)


def test_marks_are_rounded_to_steps_and_stay_when_a_later_sweep_does_not_ask_for_them(tiny, branch):
    (alone,) = expand([[*trunk(tiny), "launch.checkpoint.marks=[1000]"]])
    assert alone.config["launch"]["checkpoint"]["marks"] == [5 * STEP]
    have(alone)
    parent, _ = expand([branch])
    assert parent.config["launch"]["checkpoint"]["marks"] == [5 * STEP, 20 * STEP]
    assert expand([trunk(tiny)])[0].config["launch"]["checkpoint"]["marks"] == [5 * STEP]


@pytest.mark.parametrize(
    ("status", "checkpoints", "good"),
    [
        ("completed", [20 * STEP, 19200], True),
        ("completed", [4800, 19200], False),
        ("completed", [], False),
        ("preempted", [10 * STEP], True),
        ("preempted", [10 * STEP, 30 * STEP], False),
        ("diverged", [10 * STEP], True),  # the branch is listed as not started, the others go on
        (None, [30 * STEP], False),
    ],
)
def test_a_checkpoint_that_is_past_and_was_not_kept_stops_everything(branch, status, checkpoints, good):
    parent, child = expand([branch])
    have(parent, status, checkpoints)
    if good:
        assert len(expand([branch])) == 2
        return
    with pytest.raises(ValueError) as error:
        expand([branch])
    said = str(error.value)
    assert f"{parent.folder} at {20 * STEP} tokens; it has {', '.join(map(str, checkpoints)) or 'none'}" in said
    assert "parent.tokens" in said and "label" in said
    have(child, checkpoints=[30 * STEP])
    assert len(expand([branch])) == 2, "a branch with a checkpoint of its own needs no other"


def test_a_bad_parent_is_a_bad_point_among_the_others(tiny, branch):
    with pytest.raises(ValueError, match=r"1 of 2 points are not valid") as error:
        expand([[*tiny, "seed=5"], [*branch, "parent.overrides=[model.n_heads=3]"]])
    assert "model.n_heads=3 does not divide" in str(error.value)
