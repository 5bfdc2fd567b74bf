"""Every strategy, world size and optimizer trains the run that one device trains: same samples, same losses."""

import json
import random
from pathlib import Path

import pytest
import torch

from train.checkpoint import newest, read_weights

pytestmark = pytest.mark.usefixtures("hydra_conf")

# 22 steps: a ramp from 7 sequences on, micro-batches of 2 (the last of a rank is ragged, and some are empty), clipping
RUN = [
    "ramp=seesaw",
    "ramp.alpha=1.5",
    "ramp.batch_size=7",
    "total_tokens=6976",
    "launch.micro_batch_size=2",
    "clip_norm=0.4",
    "z_loss=1e-3",
    "launch.log_every_tokens=1",
    "launch.collective_timeout=60",
]
OPTIMIZERS = {
    "adamw": [],
    "lion": ["peak_lr=1e-3"],
    "sgd": ["peak_lr=0.1", "optimizer.momentum=0.9"],
    "normalized_sgd": ["peak_lr=0.1"],
    "muon": [],
    "swan": [],
    "shampoo": [],
    # where gradients lack rank it divides rounding by rounding: then micro-batches of 3 on one device differ as much
    "soap": ["optimizer.eps=1e-2"],
}
SPLIT = {
    "fsdp": ["strategy=fsdp"],
    "zero1": ["strategy=zero1"],
    "zero2": ["strategy=zero2"],
    "zero3": ["strategy=zero3"],
}
STRATEGIES = {"ddp": ["strategy=ddp"], **SPLIT, "zero3_offload_cpu": ["strategy=zero3_offload_cpu"]}
HYBRID = ["strategy=fsdp", "launch.strategy.replicas=2"]
MOVED_THROUGH = {("zero1", 1), ("zero3_offload_cpu", 1), ("fsdp", 4), ("zero2", 4), ("zero3", 4)}
"""in test_layouts a run lives on these too, and is held against that of one device"""


@pytest.fixture(scope="module")
def singles():
    """What one device trained, by overrides."""
    return {}


@pytest.fixture
def single(pool, make, singles, tmp_path_factory):
    """Overrides -> the run of one device, trained once for all tests."""

    def single(*overrides):
        if overrides not in singles:
            point = make("single", *overrides, f"launch.runs={tmp_path_factory.mktemp('single')}")
            assert pool.train(point) == "completed"
            assert len(rows(point, "step")) == 22
            assert min(norm for (norm,) in rows(point, "grad_norm")) > 0.4  # all are clipped
            singles[overrides] = point
        return singles[overrides]

    return single


def rows(point, *keys):
    lines = [json.loads(line) for line in (point.folder / "metrics.jsonl").read_text().splitlines()]
    return [[line.get(key) for key in keys] for line in lines]


def final_weights(point):
    return read_weights(newest(point.folder / "checkpoints"))


def check_same(point, expected, rtol=1e-5):
    exact = ("step", "tokens", "samples", "lr", "batch_size")
    assert rows(point, *exact) == rows(expected, *exact)
    for key in ("loss", "grad_norm", "z_loss"):
        assert rows(point, key) == [pytest.approx(row, rel=rtol) for row in rows(expected, key)], key
    weights = final_weights(point)
    for name, value in final_weights(expected).items():
        difference = torch.linalg.vector_norm(weights[name] - value) / torch.linalg.vector_norm(value)
        assert difference < rtol, name


@pytest.mark.parametrize(
    ("strategy", "world_size"),
    [
        pytest.param(name, size, marks=[pytest.mark.long] if (name, size) in MOVED_THROUGH else [])
        for name in STRATEGIES
        for size in (1, 2, 4)
    ],
)
def test_a_strategy_trains_the_run_that_one_device_trains(pool, make, single, strategy, world_size):
    split = make("split", *STRATEGIES[strategy], f"launch.devices={world_size}")
    assert pool.train(split, world_size) == "completed"
    check_same(split, single())


def test_fsdp_in_replicas_trains_the_run_that_one_device_trains(pool, make, single):
    split = make("split", *HYBRID, "launch.devices=4")
    assert pool.train(split, 4) == "completed"
    check_same(split, single())


@pytest.mark.parametrize("strategy", ["fsdp", "zero3"])
@pytest.mark.parametrize("checkpointing", ["full", "selective"])
def test_recomputed_activations_change_nothing(pool, make, single, strategy, checkpointing):
    how = [*STRATEGIES[strategy], f"launch.activation_checkpointing={checkpointing}", "launch.devices=2"]
    split = make("split", *how)
    assert pool.train(split, 2) == "completed"
    check_same(split, single())


@pytest.mark.parametrize(
    "strategy",
    [
        "fsdp",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("ddp", "zero1", "zero2", "zero3")),
    ],
)
def test_compiled_blocks_train_the_same_run(pool, make, single, strategy):
    how = [*STRATEGIES[strategy], "launch.activation_checkpointing=selective", "launch.compile=true"]
    split = make("split", *how, "launch.devices=2")
    assert pool.train(split, 2) == "completed"
    check_same(split, single())


@pytest.mark.long
@pytest.mark.timeout(1200)  # DeepSpeed compiles its asynchronous input and output first: minutes on a small machine
@pytest.mark.skipif(not Path("/usr/include/libaio.h").exists(), reason="NVMe offload needs libaio (Debian: libaio-dev)")
def test_weights_and_optimizer_state_on_a_disk_train_the_same_run(pool, make, logged, single, tmp_path):
    how = ["strategy=zero3_offload_nvme", f"launch.strategy.nvme_path={tmp_path}/nvme", "launch.devices=2"]
    how += ["launch.collective_timeout=600", "averages=standard"]
    split, stopped = make("split", *how), make("stopped", *how)
    assert pool.train(split, 2) == "completed"
    check_same(split, single())
    assert pool.train(stopped, 2, steps=9) == "preempted"
    assert pool.train(stopped, 2) == "completed"
    assert logged(stopped.folder) == logged(split.folder)


@pytest.mark.parametrize("strategy", SPLIT)
@pytest.mark.parametrize("optimizer", ["lion", "sgd"])
def test_every_optimizer_that_can_be_split_is(pool, make, single, optimizer, strategy):
    how = [f"optimizer={optimizer}", *OPTIMIZERS[optimizer]]
    split = make("split", *how, *SPLIT[strategy], "launch.devices=2")
    assert pool.train(split, 2) == "completed"
    check_same(split, single(*how))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_has_replicas(pool, make, single, optimizer):
    how = [f"optimizer={optimizer}", *OPTIMIZERS[optimizer]]
    split = make("split", *how, *STRATEGIES["ddp"], "launch.devices=2")
    assert pool.train(split, 2) == "completed"
    check_same(split, single(*how), rtol=2e-3 if optimizer == "soap" else 1e-5)


@pytest.mark.parametrize("strategy", SPLIT)
@pytest.mark.parametrize("optimizer", sorted(set(OPTIMIZERS) - {"adamw", "lion", "sgd"}))
def test_an_optimizer_of_whole_matrices_is_refused_where_they_are_split(make, optimizer, strategy):
    with pytest.raises(ValueError, match=f"needs whole matrices, strategy={strategy} splits them"):
        make("split", f"optimizer={optimizer}", *SPLIT[strategy])


CONTEXTS = {  # head_parallel, ring, window, placement; world
    "ring": ((1, 2, None, "head_first"), 2),
    "heads": ((2, 1, None, "head_first"), 2),
    "both": ((2, 2, None, "head_first"), 4),
    "both, context first": ((2, 2, None, "context_first"), 4),
    "two windows": ((1, 4, 2, "head_first"), 4),
    "ring of two groups": ((1, 2, 1, "head_first"), 4),
    "heads of two groups": ((2, 1, None, "head_first"), 4),
}


def context(name):
    (heads, ring, window, placement), world_size = CONTEXTS[name]
    keys = {"head_parallel": heads, "ring": ring, "window": window or "null", "placement": placement}
    return [f"launch.devices={world_size}", *(f"context.{key}={value}" for key, value in keys.items())], world_size


@pytest.mark.parametrize(("layout", "strategy"), [
    ("ring", "ddp"), ("both", "fsdp"), ("two windows", "zero3"), ("ring of two groups", "zero2"),
    pytest.param("heads", "ddp", marks=pytest.mark.long), pytest.param("both", "zero1", marks=pytest.mark.long),
    pytest.param("heads of two groups", "ddp", marks=pytest.mark.long),
    pytest.param("ring", "zero3_offload_cpu", marks=pytest.mark.long),
])  # fmt: skip
def test_a_context_trains_the_run_that_one_device_trains(pool, make, single, layout, strategy):
    how, world_size = context(layout)
    # of 7 sequences one of two groups has 4: a micro-batch more, in which the other has none
    split = make("split", *STRATEGIES[strategy], *how, "launch.micro_batch_size=3")
    assert pool.train(split, world_size) == "completed"
    check_same(split, single())


PACKED = ["model.document_mask=true", "model.n_heads=4", "model.n_kv_heads=1", "averages=standard"]
PACKED += ["eval.every_tokens=2240", "launch.activation_checkpointing=selective"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Overrides for documents of 1 to 80 bytes: many to a sequence, or several sequences to one."""
    path, draw = tmp_path_factory.mktemp("short") / "short.jsonl", random.Random(0)
    texts = ("".join(draw.choices("etaoin shrdlu", k=int(80 ** draw.random()))) for _ in range(1200))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return (*PACKED, f"data.sources.files.paths=[{path}]")


def check_all_same(split, expected, noise):
    """What is evaluated and measured too."""
    check_same(split, expected)
    for key in ("eval_loss", "eval_loss_tail", *(["noise_scale"] if noise else [])):
        found, wanted = ([value for (value,) in rows(point, key) if value is not None] for point in (split, expected))
        assert wanted and found == pytest.approx(wanted, rel=1e-3 if key == "noise_scale" else 1e-5), key


@pytest.mark.parametrize(("layout", "strategy"), [
    ("both, context first", "zero1"), pytest.param("two windows", "fsdp", marks=pytest.mark.long)
])  # fmt: skip
def test_documents_averages_evaluations_and_noise_are_those_of_one_device(pool, make, single, packed, layout, strategy):
    """Shared key heads, fewer than ranks; recomputed but for attention."""
    how, world_size = context(layout)
    split = make("split", *STRATEGIES[strategy], *how, *packed)
    assert pool.train(split, world_size) == "completed"
    check_all_same(split, single(*packed), noise=strategy != "fsdp")


@pytest.mark.parametrize(("strategy", "world_size", "capacity"), [
    ("zero3", 4, 12), pytest.param("ddp", 3, 12, marks=pytest.mark.long),
    pytest.param("fsdp", 4, 8, marks=pytest.mark.long), pytest.param("zero1", 2, 20, marks=pytest.mark.long),
])  # fmt: skip
def test_a_pool_of_ranks_trains_the_run_of_one_device(pool, make, single, packed, strategy, world_size, capacity):
    """Documents of up to 32 tokens on ranks that hold fewer: rings that differ from one to the next."""
    how = [f"launch.devices={world_size}", f"context.capacity={capacity}", "launch.micro_batch_size=null"]
    split = make("split", *STRATEGIES[strategy], *packed, *how)
    assert pool.train(split, world_size) == "completed"
    check_all_same(split, single(*packed), noise=False)
