"""`dry_run=true` as a user meets it: all points are validated and shown, nothing is started or written."""

import json

import pytest

from conf.points import expand
from data.files import write_json
from slurm.dry_run import _speeds, describe, in_bytes, measured_speeds, memory
from train.context_parallel.cost import Machine, ranked
from train.context_parallel.cost import describe as describe_layouts
from train.context_parallel.placement import Context
from train.memory import STRATEGIES


@pytest.mark.usefixtures("hydra_conf")
def test_each_point_is_shown_with_its_size_and_a_grouping_only_once(tiny):
    grid = [
        [*tiny, "optimizer=muon", "dry_run=true", f"model.d_model={d}", f"seed={s}"] for d in (16, 8) for s in (0, 1)
    ]
    points = expand(grid)
    text = describe(points)
    for point in points:
        assert f"{point.run_id} " in text and f"default/{point.run_id}\n" in text
        for value in (
            f"N {point.shape.N:,}",
            f"steps {point.plan.serial_steps}",
            f"tokens {point.plan.final_tokens:,}",
        ):
            assert value in text
    assert (
        text.count("  Muon: 14 tensors, ") == 2 and text.count(f"  memory and optimizer as for {points[0].run_id}") == 1
    )
    hidden = (
        sum(rows * columns for rows, columns in list(points[0].shape.parameters().values())[2:6]) * 2 + 2 * 3 * 16 * 32
    )
    assert f"  Muon: 14 tensors, {hidden:,} parameters, weight decay 0.1, rate x 1" in text
    assert "  AdamW: 2 tensors, 12,288 parameters, weight decay 0.1, rate x 1\n    embedding.weight head.weight" in text
    assert "blocks.*.attention.q.weight" in text and "blocks.1" not in text


@pytest.mark.usefixtures("hydra_conf")
def test_a_dry_run_names_the_run_that_would_be_trained(tiny):
    assert expand([[*tiny, "dry_run=true"]])[0].run_id == expand([tiny])[0].run_id


def test_a_dry_run_writes_nothing_needs_no_torch_and_still_refuses_bad_points(fulcrum, tiny, tmp_path, monkeypatch):
    (tmp_path / "block").mkdir()
    (tmp_path / "block" / "sitecustomize.py").write_text("import sys; sys.modules['torch'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "block"))
    before = sorted(tmp_path.rglob("*"))
    arguments = ["train", "-m", *tiny, "optimizer=swan,shampoo", "optimizer.weight_decay=null", "dry_run=true"]
    good = fulcrum(*arguments, "optimizer.timescale=0.5")
    assert good.returncode == 0, good.stderr
    assert "2 points would be trained" in good.stdout and "SWAN: 14 tensors" in good.stdout
    single = fulcrum("train", *tiny, "dry_run=true")
    assert single.returncode == 0 and "1 point would be trained" in single.stdout, single.stderr
    bad = fulcrum(*arguments, "optimizer.timescale=0.5,0.001")
    assert bad.returncode == 1 and "2 of 4 points are not valid" in bad.stderr and "Traceback" not in bad.stderr
    assert sorted(p for p in tmp_path.rglob("*") if "__pycache__" not in p.parts) == before


@pytest.mark.usefixtures("hydra_conf")
def test_hours_follow_from_a_given_speed(tiny):
    points = expand([[*tiny, f"launch.tokens_per_second={100 / hours}", f"label=h{hours}"] for hours in (1, 4)])
    text = describe(points)
    for hours in (1, 4):
        assert f"  {6400 * hours / 100 / 3600:.3g} hours at {100 / hours:.0f} tokens/s, as given" in text
    assert f"{6400 * 5 / 100 / 3600:.3g} hours for 2 of 2 points" in text


@pytest.mark.usefixtures("hydra_conf")
def test_hours_follow_from_runs_of_the_same_shape_and_layout(tiny):
    (point,) = expand([tiny])
    assert "not known for 1 of 1: give launch.tokens_per_second" in describe([point])
    shape = point.shape
    run = {"N": shape.N, "N_total": shape.N_total, "sequence_length": 32, "precision": "float32"}
    run["flops_per_token"] = shape.flops_per_token(32)
    life = {"world_size": 1, "strategy": "single"}

    def record(name, run, life, speeds):
        folder = point.folder.parent / name
        folder.mkdir(parents=True)
        write_json(folder / "run.json", run)
        (folder / "lives.jsonl").write_text(json.dumps(life) + "\n")
        rows = [json.dumps({"tokens": i + 1, "tokens_per_second": speed}) + "\n" for i, speed in enumerate(speeds)]
        (folder / "metrics.jsonl").write_text("".join(rows))

    record("other size", run | {"N": 1}, life, [1e9])
    record("other precision", run | {"precision": "bf16"}, life, [1e9])
    record("other layout", run, life | {"world_size": 2}, [1e9])
    record("other strategy", run, life | {"strategy": "ddp"}, [1e9])
    record("no row yet", run, life, [])
    assert measured_speeds(point) == []
    _speeds.cache_clear()  # a command reads the records once
    record("first", run, life, [1.0, 4.0, 5.0])
    record("second", run, life, [8.0])
    assert measured_speeds(point) == [4.0, 8.0]
    assert f"  {6400 / 6 / 3600:.3g} hours at 6 tokens/s, the median of 2 runs" in describe([point])


SHARED = ["launch.devices=4", "strategy=ddp", "context.ring=2", "context.head_parallel=2"]
MACHINE = [f"context.machine.{given}" for given in ("node_bandwidth=2e9", "network_bandwidth=1e8", "latency=1e-5")]


@pytest.mark.usefixtures("hydra_conf")
def test_layouts_of_context_are_compared_on_the_machine_that_is_given(tiny):
    given = [*tiny, *SHARED, *MACHINE, "context.machine.flops=1e9", "slurm.nodes=2", "context.placement=context_first"]
    (point,) = expand([given])
    text = describe([point])
    costs = ranked(point.shape, 4, Machine(2, 2e9, 1e8, 1e-5, 1e9), 32, rows=6, number_bytes=4)
    lines = describe_layouts(costs, Context(2, 2, None, "context_first"))
    assert "on 4 ranks, 2 a node: ms of a micro-batch of 6" in text and "\n".join(f"  {line}" for line in lines) in text
    (wider,) = expand([[*given, "context.machine.ranks_per_node=8"]])
    assert "on 4 ranks, 4 a node" in describe([wider])


@pytest.mark.usefixtures("hydra_conf")
def test_without_a_machine_it_is_said_what_to_give_and_what_measures_it(tiny):
    text = describe(expand([[*tiny, *SHARED, *MACHINE]]))
    assert "compared where you give context.machine.flops, as benchmarks/context_parallel.py measures" in text
    assert "layouts of context" not in describe(expand([tiny]))


@pytest.mark.usefixtures("hydra_conf")
def test_a_machine_that_is_given_does_not_hide_measured_runs_of_the_layout(tiny):
    (one,), (other,) = (expand([[*tiny, *SHARED, *machine]]) for machine in ([], MACHINE))
    assert one.run_id == other.run_id
    folder = one.folder.parent / "run"
    folder.mkdir(parents=True)
    run = {"N": one.shape.N, "N_total": one.shape.N_total, "sequence_length": 32, "precision": "float32"}
    write_json(folder / "run.json", run | {"flops_per_token": one.shape.flops_per_token(32)})
    life = {"world_size": 4, "strategy": "ddp", "context": "2 x 2, head_first"}
    (folder / "lives.jsonl").write_text(json.dumps(life) + "\n")
    (folder / "metrics.jsonl").write_text(json.dumps({"tokens": 1, "tokens_per_second": 7.0}) + "\n")
    assert measured_speeds(other) == [7.0]
    _speeds.cache_clear()
    (folder / "lives.jsonl").write_text(json.dumps(life | {"context": "2 x 2, context_first"}) + "\n")
    assert measured_speeds(other) == []


@pytest.mark.usefixtures("hydra_conf")
def test_the_memory_of_a_rank_is_shown_by_strategy_and_the_points_own_is_marked(tiny):
    (point,) = expand([[*tiny, "strategy=zero2", "launch.devices=4", "launch.micro_batch_size=1", "averages=standard"]])
    text = describe([point])
    rows = {line.strip("* ").split()[0]: line for line in text.splitlines() if line.strip("* ").startswith(STRATEGIES)}
    assert set(rows) == set(STRATEGIES)
    assert [name for name, line in rows.items() if line.startswith("*")] == ["zero2"]
    assert "takes one device" in rows["single"]
    weights = 4 * point.shape.N_total
    assert in_bytes(weights) in rows["ddp"] and in_bytes(weights / 4) in rows["fsdp"]
    assert in_bytes(weights * len(point.config["averages"]) / 4) in rows["zero2"]
    assert f"memory {in_bytes(memory(point, 'zero2').device)} a rank with zero2" in text


@pytest.mark.usefixtures("hydra_conf")
def test_a_sweep_has_one_table_and_an_optimizer_that_no_strategy_may_split_says_so(tiny):
    points = expand([[*tiny, "optimizer=muon", f"model.d_model={d}", f"label=w{d}"] for d in (8, 32, 16)])
    text = describe(points)
    assert text.count("by strategy") == 1 and f"\n{points[1].run_id}, which needs the most" in text
    assert text.count("splits matrices, which Muon needs whole") == len(STRATEGIES) - 2
    assert text.count("a rank with single (") == 3


@pytest.mark.parametrize(
    ("size", "text"), [(0, "-"), (512, "512 B"), (999.6e3, "1 MB"), (1.234e9, "1.23 GB"), (5e12, "5 TB")]
)
def test_sizes_are_read_at_a_glance(size, text):
    assert in_bytes(size) == text


@pytest.mark.usefixtures("hydra_conf")
def test_a_rank_that_shares_sequences_has_the_activations_of_its_part(tiny):
    """And no mask of documents, which no rank makes then."""
    common = [*tiny, "strategy=ddp", "launch.devices=4", "launch.micro_batch_size=2"]
    ring, short, pool = (
        expand([[*common, *how]])[0]
        for how in (
            ["context.ring=4", "sequence_length=64", "model.document_mask=true"],
            ["sequence_length=16"],
            ["context.capacity=16", "sequence_length=32", "model.document_mask=true", "launch.micro_batch_size=null"],
        )
    )
    shared, alone, pooled = (memory(point, "ddp").activations for point in (ring, short, pool))
    assert shared == alone == 2 * pooled


@pytest.mark.parametrize(("key", "value"), [("flops", -1), ("ranks_per_node", 0), ("latency", -1e-6)])
@pytest.mark.usefixtures("hydra_conf")
def test_a_machine_that_cannot_be_is_refused(tiny, key, value):
    with pytest.raises(ValueError, match=rf"context\.machine\.{key}=.*: use a positive number, or null"):
        expand([[*tiny, f"context.machine.{key}={value}"]])
