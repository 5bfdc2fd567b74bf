"""The memory that a dry run expects, held against the real model, its optimizers and its backward pass."""

import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from optim.adamw import AdamW
from optim.lion import Lion
from optim.muon import Muon
from optim.normalized_sgd import NormalizedSGD
from optim.plan import Plan
from optim.ramps import ConstantBatch
from optim.schedules import Constant
from optim.sgd import SGD
from optim.shampoo import Shampoo
from optim.soap import SOAP
from optim.swan import SWAN
from train import loss, memory
from train.blocks import prepare_blocks
from train.memory import STRATEGIES, activation_bytes, optimizer_bytes, per_rank
from train.model import Transformer, initialize
from train.shape import Shape

SWIGLU = Shape(
    d_model=32, n_layers=4, n_heads=4, n_kv_heads=2, d_ff=88, qk_norm=True, vocab_size=200, document_mask=False
)
GELU = Shape(d_model=32, n_layers=3, n_heads=2, d_ff=128, mlp="gelu", vocab_size=1000, tied=True)
DOCUMENTS = Shape(d_model=32, n_layers=3, n_heads=2, d_ff=128, mlp="gelu", vocab_size=100, document_mask=True)
ROWS, LENGTH = 3, 64
PLAN = Plan(6400, 32, 1e-3, Constant(), ConstantBatch(2))


def built(shape, checkpointing="none"):
    """A model and a pass over one micro-batch, forward and backward."""
    model = Transformer(shape, shape.vocab_size)
    initialize(model, 0)
    prepare_blocks(model, checkpointing, compile=False)
    tokens = torch.randint(0, shape.vocab_size, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    documents = (torch.arange(LENGTH) // 7).expand(ROWS, LENGTH).contiguous() if shape.document_mask else None

    def forward(precision="float32"):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return model(tokens, documents, tokens)[0]

    return model, forward


@pytest.mark.parametrize(
    "settings",
    [
        AdamW(),
        Lion(),
        SGD(),
        SGD(momentum=0.9),
        NormalizedSGD(),
        Muon(),
        SWAN(),
        pytest.param(Shampoo(), id="Shampoo"),
        pytest.param(SOAP(), id="SOAP"),
    ],
    ids=lambda settings: type(settings).__name__,
)
def test_weights_gradients_and_optimizer_state_are_exact(settings, one_thread):
    model, forward = built(SWIGLU)
    optimizer = settings.build(model.named_parameters(), PLAN)
    forward().backward()
    optimizer.step()
    state = [x for s in optimizer.state.values() for x in s.values() if isinstance(x, torch.Tensor)]
    shapes = SWIGLU.parameters()
    expected = optimizer_bytes(shapes, settings.groups(shapes, PLAN), getattr(settings, "momentum", 0.0))
    estimate = per_rank(SWIGLU, expected, "ddp", 2, ROWS, LENGTH)
    assert estimate.weights == sum(p.nbytes for p in model.parameters())
    assert estimate.gradients == sum(p.grad.nbytes for p in model.parameters())
    assert estimate.optimizer == sum(x.nbytes for x in state)


@pytest.mark.parametrize("shape", [SWIGLU, GELU, DOCUMENTS], ids=["swiglu", "gelu", "documents"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_activations_are_what_autograd_keeps(shape, precision, one_thread):
    model, forward = built(shape)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(x):
        if x.untyped_storage().data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x  # held: an address is not used again
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        forward(precision)
    found = sum(x.untyped_storage().nbytes() for x in kept.values())
    estimate = per_rank(shape, 0, "single", 1, ROWS, LENGTH, precision)
    head = 4 * shape.vocab * shape.d_model  # its weight's gradient is made in the forward pass: `temporary` has it
    rotary = 2 * LENGTH * (shape.d_head // 2) * 4  # one table for all blocks and rows
    expected = estimate.activations + head + rotary + estimate.weights - 4 * shape.N_total
    assert found == pytest.approx(expected, rel=0.002)  # but for float32 copies of gains in bf16


@pytest.mark.parametrize("shape", [SWIGLU, GELU, DOCUMENTS], ids=["swiglu", "gelu", "documents"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("checkpointing", memory.CHECKPOINTING)
def test_the_peak_of_a_micro_batch_is_within_15_percent(shape, precision, checkpointing, one_thread):
    _, forward = built(shape, checkpointing)
    forward(precision).backward()  # gradients are there, as when a step accumulates
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        forward(precision).backward()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    peak = allocated = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        allocated += event.nbytes()
        peak = max(peak, allocated)
    estimate = per_rank(shape, 0, "single", 1, ROWS, LENGTH, precision, checkpointing)
    expected = estimate.activations + estimate.temporary + estimate.weights - 4 * shape.N_total
    assert expected == pytest.approx(peak, rel=0.15)


def test_checkpointing_keeps_less_and_less():
    kept = [activation_bytes(SWIGLU, ROWS, LENGTH, checkpointing=c) for c in ("none", "selective", "full")]
    assert kept[0] > kept[1] > kept[2]
    with pytest.raises(ValueError, match="activation_checkpointing=half"):
        activation_bytes(SWIGLU, ROWS, LENGTH, checkpointing="half")


def test_the_chunk_of_logits_is_the_one_of_the_loss():
    assert memory.CHUNK_ELEMENTS == loss.CHUNK_ELEMENTS
    assert inspect.signature(loss.linear_cross_entropy).parameters["chunk_elements"].default == loss.CHUNK_ELEMENTS


@given(st.integers(1, 64), st.sampled_from(["float32", "bf16"]))
def test_what_is_split_is_there_once_over_all_ranks(ranks, precision):
    state = 8 * GELU.N_total
    of = {s: per_rank(GELU, state, s, ranks, 1, 32, precision, averages=1) for s in STRATEGIES}
    n, c = GELU.N_total, 4 if precision == "float32" else 2
    for name in ("fsdp", "zero1", "zero2", "zero3"):
        assert of[name].optimizer * ranks == pytest.approx(state)
        assert of[name].averages * ranks == pytest.approx(4 * n)
    for name in ("fsdp", "zero2", "zero3"):
        assert of[name].gradients * ranks == pytest.approx(4 * n)
    assert of["fsdp"].weights * ranks == pytest.approx(4 * n)
    assert of["zero3"].weights * ranks == pytest.approx((4 + c) * n)
    assert of["zero1"].weights == of["zero2"].weights == pytest.approx(c * n + 4 * n / ranks)
    split = of["zero3"]
    moved = split.weights + split.gradients + split.optimizer + split.averages
    for name in ("zero3_offload_cpu", "zero3_offload_nvme"):
        assert of[name].host + of[name].disk == pytest.approx(moved)
        assert of[name].device == pytest.approx(split.device - moved)
    assert of["zero3_offload_cpu"].disk == 0 < of["zero3_offload_nvme"].disk


def test_hybrid_sharding_splits_over_the_ranks_of_a_replica():
    hybrid, plain = (per_rank(GELU, 100.0, "fsdp", ranks, 1, 32, replicas=r) for ranks, r in ((8, 2), (4, 1)))
    assert hybrid == plain


def test_an_unknown_strategy_is_named():
    with pytest.raises(ValueError, match="strategy=zero4"):
        per_rank(GELU, 0, "zero4", 1, 1, 32)
