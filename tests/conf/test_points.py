import json

import pytest

from conf.points import canonical_json, compose_config, expand, identity

pytestmark = pytest.mark.usefixtures("hydra_conf")


def test_points_of_a_grid_are_named_by_what_they_are(tiny):
    first, second = expand([[*tiny, "seed=0"], [*tiny, "seed=1"]])
    assert first.run_id != second.run_id
    assert expand([[*tiny, "seed=0", "launch.parallel=2", "launch.log_every_tokens=100"]])[0].run_id == first.run_id
    assert first.folder.name == first.run_id and first.folder.parent.name == "default"


def test_the_spelling_of_a_number_does_not_change_the_run(tiny):
    ids = {expand([[*tiny, f"total_tokens={value}"]])[0].run_id for value in ("6400", "6.4e3", "6400.0", "6401")}
    assert len(ids) == 1
    points = [expand([[*tiny, f"ramp.batch_size={value}"]])[0] for value in ("6", "6.0", "${div:12,2}")]
    assert len({point.run_id for point in points}) == 1
    assert type(points[1].config["ramp"]["batch_size"]) is int
    assert canonical_json({"b": 1.0, "a": [2e3]}) == '{"a":[2000],"b":1}'


def test_options_that_are_null_leave_old_run_ids_as_they_are(tiny):
    config = compose_config(tiny)
    assert identity(config | {"an_option_added_later": None}) == identity(config)
    assert "launch" not in identity(config)
    assert identity(config | {"label": "again"}) != identity(config)


def test_run_ids_do_not_change_between_versions():
    """A change here orphans every record that users have: only a changed default of an identity field may cause it."""
    (point,) = expand([["model=tiny", "data=stdlib", "tokenizer=bytes", "seed=3"]])
    assert point.run_id == "ra1b7656202e"


def test_all_bad_points_are_listed_and_none_is_returned(tiny):
    with pytest.raises(ValueError) as error:
        expand([tiny, [*tiny, "seed=1", "ramp.batch_size=1000"], [*tiny, "seed=2", "model.n_heads=3"]])
    message = str(error.value)
    assert "2 of 3 points are not valid; nothing was started" in message
    assert "ramp.batch_size=1000" in message and "model.n_heads=3 does not divide" in message


def test_two_points_that_are_the_same_run_are_refused(tiny):
    with pytest.raises(ValueError, match="is the same run as"):
        expand([tiny, [*tiny, "launch.threads=2"]])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("no_such_key=1", "no_such_key"),
        ("model.d_modle=8", "d_modle"),
        ("seed=abc", "seed"),
        ("schedule.finall=0.5", "finall"),
        ("optimizer.beta1=2", "optimizer.beta1=2"),
        ("precision=fp8", "precision=fp8"),
        ("total_tokens=0", "total_tokens=0"),
        ("eval.tokens=1.5", "eval.tokens=1.5"),
        ("launch.devices=0", "launch.devices=0"),
        ("launch.devices=2", "strategy=single takes 1 device, there are 2"),
        ("ramp.batch_size=4.5", "ramp.batch_size=4.5: a whole number is needed"),
        ("model.d_model=abc", "model.d_model=abc: a whole number is needed"),
        ("optimizer.beta1=abc", "optimizer.beta1=abc: a number is needed"),
        ("model.tied=2", "model.tied=2: true or false is needed"),
        ("model.n_kv_heads=0", "model.n_kv_heads=0"),
        ("total_tokens=inf", "total_tokens=inf: a finite number is needed"),
        ("peak_lr=inf", "peak_lr=inf: a finite number is needed"),
        ("launch.logger=5", "launch.logger=5"),
        ("optimizer._target_=nope.X", "optimizer._target_=nope.X: there is no such class"),
        ("data.sources=null", "data.sources=None"),
        ("data.weights=3", "data.weights=3"),
        ("clip_norm=-1", "clip_norm=-1"),
        ("model.vocab_size=100", "model.vocab_size=100: the tokenizer has 257 ids"),
        ("data.sources.files.paths=[]", "paths"),
        ("+data.weights={other: 1}", "data.weights"),
        ("averages=standard averages.tail.start=2", "averages.tail.start=2"),
        ("logger=wandb launch.logger.projct=x", "projct"),
    ],
)
def test_bad_input_is_refused_by_name(tiny, override, message):
    with pytest.raises(ValueError) as error:
        expand([[*tiny, *override.split(" ")]] if "{" not in override else [[*tiny, override.removeprefix("+")]])
    assert message in str(error.value)


def test_a_folder_written_by_another_configuration_is_refused(tiny):
    (point,) = expand([tiny])
    point.folder.mkdir(parents=True)
    (point.folder / "config.yaml").write_text("seed: 77\n")
    with pytest.raises(ValueError, match="was written by another configuration"):
        expand([tiny])


def test_a_refined_schedule_takes_the_gradient_norms_of_an_earlier_run(tiny, tmp_path):
    record = tmp_path / "earlier"
    record.mkdir()
    rows = [{"tokens": 100 * k, "grad_norm": 2.0, "loss": 1.0} for k in range(1, 9)]
    (record / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refined = [*tiny, "schedule=refined", f"schedule.record={record}"]
    with pytest.raises(ValueError, match=r"schedule\.record=.*earlier: no run lies there"):
        expand([refined])
    (record / "summary.json").write_text('{"status": "completed"}')
    (point,) = expand([refined])
    linear = expand([[*tiny, "schedule=linear"]])[0].plan
    assert point.plan.steps().lr == pytest.approx(linear.steps().lr, abs=1e-9)  # constant norms: linear decay
    # what the run is does not depend on where the record lay, or on whether it still does
    record.rename(tmp_path / "moved")
    (again,) = expand([[*tiny, "schedule=refined", f"schedule.record={tmp_path / 'moved'}"]])
    assert again.run_id == point.run_id and "record" not in again.config["schedule"]
