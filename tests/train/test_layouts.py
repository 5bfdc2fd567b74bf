"""One run in many lives: every layout goes on from every other, and on the same one bit for bit."""

import json
import shutil

import pytest
import torch

from train.checkpoint import newest, read_weights

pytestmark = pytest.mark.usefixtures("hydra_conf")

RUN = [
    "ramp=seesaw",
    "ramp.alpha=1.5",
    "ramp.batch_size=7",
    "total_tokens=6976",
    "launch.micro_batch_size=2",
    "clip_norm=0.4",
    "averages=standard",
    "+averages.ewa={_target_:optim.averaging.EWA,decay:0.5}",
    "spike_guard=standard",
    "launch.log_every_tokens=1",
    "launch.checkpoint.keep=30",
    "launch.collective_timeout=60",
]


@pytest.fixture
def state():
    """A run's newest checkpoint: weights and averages, by parameter."""

    def state(point):
        path = newest(point.folder / "checkpoints")
        return [read_weights(path, average) for average in (None, "half_life", "growing", "tail", "ewa")]

    return state


def test_a_life_on_the_same_layout_goes_on_bit_for_bit(pool, make, logged, state, layout):
    check_lives(pool, make, logged, state, *layout)


CAPACITY = ("context.capacity=20", "model.document_mask=true", "launch.micro_batch_size=null")


@pytest.mark.parametrize(
    "how", [("context.ring=2",), pytest.param(CAPACITY, marks=pytest.mark.long)], ids=["ring", "pool"]
)
def test_a_life_among_ranks_that_share_sequences_goes_on_bit_for_bit(pool, make, logged, state, how):
    check_lives(pool, make, logged, state, "ddp", 2, *how)


def check_lives(pool, make, logged, state, strategy, world_size, *how):
    point = make("run", f"strategy={strategy}", f"launch.devices={world_size}", *how)
    assert pool.train(point, world_size) == "completed"
    undisturbed, expected = logged(point.folder), state(point)
    assert len(undisturbed) == 22
    shutil.rmtree(point.folder)
    for steps in (1, 9):
        assert pool.train(point, world_size, steps) == "preempted"
    assert pool.train(point, world_size) == "completed"
    assert logged(point.folder) == undisturbed
    torch.testing.assert_close(state(point), expected, rtol=0, atol=0)


def test_a_run_moves_from_layout_to_layout(pool, make, logged, state, tmp_path):
    """Two steps on each: from every kind of layout to others, up and down in world size, in and out of a context."""
    single = make("single", "model.document_mask=true")
    assert pool.train(single) == "completed"
    lives = [
        ("zero3", 2),
        ("fsdp", 4),
        ("zero1", 2),
        ("single", 1),
        ("zero2", 4, "context.ring=2"),
        ("zero3_offload_cpu", 1),
        ("ddp", 2, "context.capacity=20", "launch.micro_batch_size=null"),
        ("zero3", 4),
        ("zero1", 1),
        ("fsdp", 2, "context.head_parallel=2"),
    ]
    for strategy, world_size, *context in lives:
        how = [f"strategy={strategy}", f"launch.devices={world_size}", *context]
        point = make("moving", "model.document_mask=true", *how)
        assert pool.train(point, world_size, steps=2) == "preempted"
    assert pool.train(point, 2) == "completed"
    assert point.run_id == single.run_id
    expected, moved = logged(single.folder), logged(point.folder)
    exact = ("step", "tokens", "samples", "lr", "batch_size", "skipped_updates")
    assert [[row[key] for key in exact] for row in moved] == [[row[key] for key in exact] for row in expected]
    for key in ("loss", "grad_norm", "eval_loss", "eval_loss_tail", "eval_loss_ewa", "eval_loss_growing"):
        pairs = [(row[key], other[key]) for row, other in zip(moved, expected, strict=True) if key in other]
        assert pairs
        assert [a for a, _ in pairs] == pytest.approx([b for _, b in pairs], rel=1e-5), key
    for weights, theirs in zip(state(point), state(single), strict=True):
        for name, value in theirs.items():
            assert torch.linalg.vector_norm(weights[name] - value) < 1e-5 * torch.linalg.vector_norm(value), name
    lives = [json.loads(line) for line in (point.folder / "lives.jsonl").read_text().splitlines()]
    assert [life["tokens_start"] for life in lives] == sorted(life["tokens_start"] for life in lives)


SHARED = ("context.ring=2", "model.document_mask=true", "launch.compile=true")


@pytest.mark.parametrize(("strategy", "world_size", "how"), [
    ("fsdp", 2, ()), ("zero1", 2, ()), ("zero3", 2, ()), pytest.param("fsdp", 2, SHARED, marks=pytest.mark.long),
])  # fmt: skip
def test_bf16_is_the_same_thing_on_every_strategy(pool, make, logged, strategy, world_size, how):
    """bf16 has 8 bits: losses differ in the third digit where gradients are added up in another order."""
    single, split = (
        make(name, "precision=bf16", *how)
        for name, how in (
            ("single", [key for key in how if key.startswith("model")]),
            ("split", [f"strategy={strategy}", f"launch.devices={world_size}", *how]),
        )
    )
    assert pool.train(single) == pool.train(split, world_size) == "completed"
    first, other = logged(single.folder), logged(split.folder)
    assert other[0]["loss"] == pytest.approx(first[0]["loss"], rel=1e-6)  # the same weights to begin with
    assert [row["loss"] for row in other] == pytest.approx([row["loss"] for row in first], rel=3e-3)
    assert [row["grad_norm"] for row in other] == pytest.approx([row["grad_norm"] for row in first], rel=3e-2)
    weights = read_weights(newest(split.folder / "checkpoints"))
    assert any((value != value.bfloat16().float()).any() for value in weights.values())  # float32 masters
