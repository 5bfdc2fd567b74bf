"""What points ask of Slurm: rules, time limits from plans, and refusals that say what to write instead."""

import dataclasses
import re
from pathlib import Path

import pytest
from hydra import compose
from hypothesis import given
from hypothesis import strategies as st

import conf
from conf.points import expand
from slurm import resources
from slurm.dry_run import speed_of
from slurm.resources import RESERVED, START_MINUTES, Slurm, asked, for_data, options
from slurm.submit import groups_of, is_local

SHIPPED = sorted(path.stem for path in (Path(conf.__file__).parent / "slurm").glob("*.yaml"))


@pytest.fixture
def point(tiny, hydra_conf):
    """Further overrides -> the one point of them."""
    return lambda *overrides: expand([[*tiny, *overrides]], "submit")[0]


def hours(number: float) -> str:
    """A speed at which the tiny run's 6400 tokens take so many hours."""
    return f"launch.tokens_per_second={6400 / number / 3600}"


def rules(*texts: str) -> str:
    return f"slurm.rules=[{','.join('{' + text + '}' for text in texts)}]"


# ---------------------------------------------------------------------------------------------------- rules


def test_rules_change_what_they_hold_for_and_later_ones_win(point):
    several = rules(
        "when: 'N > 1', mem: 1G, partition: all",
        "when: 'N >= 1e5', mem: 64G, cpus_per_task: 7",
        "when: 'devices > 1 and tokens >= 6400', mem: 2G, nodes: 2",
        "when: 'tokens > 6400', mem: 3G",
        "when: 'flops < 1', mem: 4G",
        "when: 'N_total <= 10', mem: 5G",
    )
    small, spread = point(several), point(several, "launch.devices=4", "strategy=ddp")
    assert small.shape.N < 1e5
    assert asked(small) == Slurm(mem="1G", partition="all", cpus_per_task=1, rules=[])
    assert asked(spread) == Slurm(mem="2G", partition="all", cpus_per_task=1, nodes=2, rules=[])
    large = point(several, "model.d_model=128", "model.d_ff=256")
    assert large.shape.N > 1e5
    assert (asked(large).mem, asked(large).cpus_per_task) == ("64G", 7)


def test_a_rule_by_hours_follows_the_given_speed(point):
    rule = rules("when: 'hours > 2', partition: long")
    assert asked(point(rule, hours(1.9))).partition is None
    assert asked(point(rule, hours(2.1))).partition == "long"


def test_a_rule_by_hours_that_are_not_known_says_how_to_make_them_known(point):
    one = point(rules("when: 'hours > 2', partition: long"))
    assert speed_of(one)[0] is None
    with pytest.raises(ValueError, match=r"`when: hours > 2`: the hours.*not known.*launch.tokens_per_second"):
        asked(one)


def test_a_rule_may_make_two_groups_of_one_sweep(point):
    rule = rules("when: 'N > 1e4', mem: 9G")
    points = [point(rule, f"model.d_model={width}", f"seed={seed}") for width in (16, 64) for seed in (0, 1)]
    groups = groups_of(points)
    assert [group.slurm.mem for group in groups] == ["9G", None], "the longest come first"
    assert [[p.run_id for p in group.points] for group in groups] == [
        [p.run_id for p in points[2:]],
        [p.run_id for p in points[:2]],
    ]


# ---------------------------------------------------------------------------------------------------- time


def test_the_time_limit_follows_the_expected_hours_and_is_capped(point):
    factor = "slurm.time_per_hour=1.5"
    known = point(factor, hours(2))
    assert float(asked(known).time) == pytest.approx(1.5 * 120 + START_MINUTES, abs=1)
    assert float(asked(known).time) >= 1.5 * 120 + START_MINUTES
    capped = point(factor, hours(2), "slurm.time=1:30:00")
    assert asked(capped).time == "1:30:00"
    below = point(factor, hours(0.5), "slurm.time=1:30:00")
    assert asked(below).time == str(45 + START_MINUTES)


def test_the_time_limit_is_the_given_one_where_hours_are_not_known(point):
    assert asked(point("slurm.time_per_hour=1.5", "slurm.time=1:30:00")).time == "1:30:00"
    assert asked(point("slurm.time_per_hour=1.5")).time is None


@given(
    st.integers(0, 40), st.integers(0, 99), st.integers(0, 99), st.integers(0, 99),
    st.sampled_from(["M", "M:S", "H:M:S", "D-H", "D-H:M", "D-H:M:S"]),
)  # fmt: skip
def test_time_limits_are_read_as_slurm_reads_them(days, hour, minute, second, form):
    """The six forms of sbatch's manual, each with its own units."""
    values = {"D": days, "H": hour, "M": minute, "S": second}
    seconds = {"D": 86400, "H": 3600, "M": 60, "S": 1}
    letters = re.findall("[DHMS]", form)
    text = re.sub("[DHMS]", lambda match: f"{values[match[0]]:02}", form)
    expected = sum(values[letter] * seconds[letter] for letter in letters) / 60
    assert resources._minutes(text) == pytest.approx(expected)
    if expected * 60 > 5:
        assert Slurm(time=text, grace=5).time == text


@given(st.text("0123456789:-. hmUN", max_size=9))
def test_what_is_no_time_limit_is_refused(text):
    forms = (r"\d+(:\d+){0,2}", r"\d+-\d+(:\d+){0,2}")
    if not any(re.fullmatch(form, text) for form in forms):
        with pytest.raises(ValueError, match=r"^slurm\.time="):
            Slurm(time=text)


# ---------------------------------------------------------------------------------------------------- options


def test_processes_are_spread_over_nodes_and_each_has_its_gpu(point):
    one = point("slurm=a100", "launch.devices=24", "strategy=fsdp", "slurm.sbatch=[--exclusive]")
    slurm = asked(one)
    assert slurm.nodes == 4, "the last of its rules"
    words = options(slurm, 24)
    assert {"--nodes=4", "--ntasks=24", "--ntasks-per-node=6", "--gres=gpu:a100:6", "--mem=240G"} <= set(words)
    assert {"--cpus-per-task=8", "--time=24:00:00", "--signal=USR1@300", "--partition=a100"} <= set(words)
    assert words[-1] == "--exclusive"
    assert not [word for word in words if word.startswith(("--account", "--qos"))], "null is left out"


def test_without_a_choice_nothing_is_said_that_the_cluster_knows_better(point):
    assert options(asked(point()), 1) == [
        "--nodes=1", "--ntasks=1", "--ntasks-per-node=1", "--cpus-per-task=1", "--signal=USR1@120",
    ]  # fmt: skip


def test_the_job_for_the_data_asks_for_no_gpu_and_what_prepare_says(point):
    data = for_data(asked(point("slurm=a100", "launch.devices=24", "strategy=fsdp")))
    assert (data.nodes, data.gres, data.cpus_per_task, data.mem) == (1, None, 32, "64G")
    assert data.partition == "a100", "all else stays"


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_choice_is_valid(point, name):
    one = point(f"slurm={name}")
    if name == "local":
        assert is_local([one])
        return
    assert not is_local([one])
    assert options(asked(one), 1) and options(for_data(asked(one)), 1)
    declared = {field.name for field in dataclasses.fields(Slurm)} | {"_target_"}
    assert set(compose("submit", [f"slurm={name}"]).slurm) == declared, "every field can be overridden"


def test_what_is_asked_of_slurm_is_no_part_of_the_run(point):
    plain = point().run_id
    for other in (["slurm=local"], ["slurm=a100", "slurm.mem=1G"], ["slurm.time=1:00:00", "slurm.nodes=2"]):
        assert point(*other).run_id == plain
    assert point("seed=9").run_id != plain


# ---------------------------------------------------------------------------------------------------- refusals

FIELDS = [
    ({"time": 43200}, "slurm.time=43200: write '12:00:00' or '2-00:00:00', in quotes"),
    ({"time": "soon"}, "slurm.time=soon: write '12:00:00'"),
    ({"time": "0:02:00"}, "slurm.time=0:02:00: it must be more than slurm.grace=120 seconds"),
    ({"time": "2", "grace": 200}, "slurm.time=2: it must be more than slurm.grace=200 seconds"),
    ({"nodes": 0}, "slurm.nodes=0: use at least 1"),
    ({"cpus_per_task": 0}, "slurm.cpus_per_task=0: use at least 1"),
    ({"parallel": 0}, "slurm.parallel=0: use at least 1"),
    ({"grace": -1}, "slurm.grace=-1: use 0 or more"),
    ({"max_restarts": -1}, "slurm.max_restarts=-1: use 0 or more"),
    ({"time_per_hour": 0}, "slurm.time_per_hour=0: use a positive number, or null"),
    ({"prefix": "apptainer exec"}, "slurm.prefix=apptainer exec: use a list of words"),
    ({"sbatch": ["--a\n--b"]}, "use a list of words"),
    ({"sbatch": ["exclusive"]}, "slurm.sbatch=exclusive: give --name=value"),
    ({"prepare": {"cores": 4}}, "slurm.prepare.cores=4: a field is one of account, array_size, "),
    ({"prepare": {"when": "N > 1"}}, "slurm.prepare.when=N > 1: a field is one of "),
    ({"prepare": {"nodes": 0}}, "slurm.nodes=0: use at least 1"),
    ({"rules": [{"when": "N > 1", "memory": "1G"}]}, "slurm.rules[0].memory=1G: a field is one of account, "),
    ({"rules": [{"when": "N > 1", "time": "never"}]}, "slurm.time=never: write '12:00:00'"),
    ({"rules": [{"when": "N > 1"}, {"when": "M > 1"}]}, "slurm.rules: `when: M > 1`: compare N, N_total, tokens"),
    ({"rules": [{"when": "N == 1"}]}, "`when: N == 1`"),
    ({"rules": [{"when": "N > 1 or N < 2"}]}, "`when: N > 1 or N < 2`"),
    ({"rules": [{"when": "N > e"}]}, "`when: N > e`"),
    ({"rules": [{"mem": "1G"}]}, "`when: `: compare"),
    ({"rules": ["N > 1"]}, "slurm.rules[0]=N > 1: use a mapping of fields"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), FIELDS)
def test_a_field_that_makes_no_sense_is_named_with_its_value_and_the_fix(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Slurm(**fields)


@pytest.mark.parametrize("name", RESERVED)
def test_an_option_that_fulcrum_says_itself_is_refused(name):
    with pytest.raises(ValueError, match=rf"slurm\.sbatch=--{name}=x: .*nothing that Fulcrum says itself"):
        Slurm(sbatch=["--constraint=a", f"--{name}=x"])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("mem", "[1,2]", r"slurm\.mem"),
        ("nodes", "two", r"slurm\.nodes=two: a whole number is needed"),
        ("grace", "1.5", r"slurm\.grace=1\.5: a whole number is needed"),
        ("memory", "1G", "memory"),
        ("time", "43200", r"slurm\.time=43200: write '12:00:00'"),
    ],
)
def test_a_value_of_another_kind_is_refused_with_the_point(point, field, value, message):
    with pytest.raises(ValueError, match=message):
        point(f"slurm.{field}={value}")


@pytest.mark.parametrize("place", ["rules", "prepare"])
def test_a_value_of_another_kind_inside_a_rule_is_named(point, place):
    change = "+slurm.prepare.nodes=two" if place == "prepare" else rules("when: 'N > 1', nodes: two")
    with pytest.raises(ValueError, match=r"nodes=two: a whole number is needed"):
        point(change)


def test_processes_that_do_not_spread_evenly_are_refused_with_every_such_point(point):
    points = [point("launch.devices=3", "strategy=ddp", f"slurm.nodes={nodes}", f"seed={nodes}") for nodes in (1, 2, 4)]
    with pytest.raises(ValueError) as error:
        groups_of(points)
    text = str(error.value)
    assert text.startswith("2 of 3 points are not valid; nothing was submitted.")
    for nodes in (2, 4):
        assert f"slurm.nodes={nodes}: launch.devices=3 does not spread evenly over so many" in text
        assert f"seed={nodes}\n" in text


def test_points_of_this_machine_and_of_slurm_are_not_mixed(point):
    with pytest.raises(ValueError, match="some points would train on this machine and some on Slurm"):
        is_local([point("slurm=local"), point("slurm=cpu", "seed=1")])
