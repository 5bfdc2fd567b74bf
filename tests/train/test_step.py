import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.fabric import Fabric

from data.batches import Batches
from data.order import EvenlySpaced
from train.engine import TorchEngine
from train.measure import Clock
from train.model import Transformer, initialize
from train.shape import Shape
from train.spikes import SpikeGuard
from train.step import evaluate, optimizer_step

LENGTH = 8
SHAPE = Shape(d_model=16, n_layers=1, n_heads=2, d_ff=24, vocab_size=40)


class Noise:
    """Token shards of pseudo-random ids."""

    n_tokens = 1000

    def __init__(self):
        self.ids = torch.randint(0, 40, (self.n_tokens,), generator=torch.Generator().manual_seed(0)).numpy()

    def windows(self, starts, length):
        return self.ids[starts[:, None] + torch.arange(length).numpy()]


def batches(samples, micro_batch_size):
    return list(
        Batches({"a": Noise()}, EvenlySpaced("a", 124, 124), LENGTH, False).micro_batches(
            0, samples, 0, 1, micro_batch_size
        )
    )


def setup(clip_norm=0.0):
    fabric = Fabric(accelerator="cpu", devices=1)
    model = Transformer(SHAPE, 40)
    initialize(model, 0)
    return TorchEngine(fabric, model, lambda module: torch.optim.SGD(module.parameters(), lr=1.0), clip_norm)


def step(samples, micro_batch_size, clip_norm=0.0, z_loss=0.0, lr=0.5, spoil=None, guard=None):
    engine = setup(clip_norm)
    if spoil:
        spoil(engine.module)
    before = {name: p.detach().clone() for name, p in engine.module.named_parameters()}
    clock = Clock(torch.device("cpu"))
    result = optimizer_step(
        engine, batches(samples, micro_batch_size), samples * LENGTH, 0, lr, z_loss, clock, guard=guard
    )
    return result, before, {name: p.detach() for name, p in engine.module.named_parameters()}


@given(st.integers(1, 12), st.integers(1, 13))
def test_a_step_is_the_same_for_every_micro_batch_size(samples, micro_batch_size):
    whole, _, expected = step(samples, samples)
    split, _, weights = step(samples, micro_batch_size)
    assert split.loss == pytest.approx(whole.loss, rel=1e-6)
    assert split.grad_norm == pytest.approx(whole.grad_norm, rel=1e-5)
    for name in expected:
        torch.testing.assert_close(weights[name], expected[name], rtol=1e-4, atol=1e-6)


def test_loss_and_gradient_are_those_of_the_mean_over_all_tokens():
    engine = setup()
    (batch,) = batches(5, 5)
    logits, targets = engine.model(torch.from_numpy(batch.tokens)), torch.from_numpy(batch.targets)
    mean = torch.nn.functional.cross_entropy(logits[..., :40].flatten(0, 1), targets.flatten())
    assert step(5, 2)[0].loss == pytest.approx(mean.item(), rel=1e-6)
    gradients = torch.autograd.grad(mean, list(engine.module.parameters()))
    norm = torch.linalg.vector_norm(torch.cat([gradient.flatten() for gradient in gradients]))
    assert step(5, 2)[0].grad_norm == pytest.approx(norm.item(), rel=1e-5)
    assert evaluate(engine, batches(5, 2)) == pytest.approx(mean.item(), rel=1e-6)


def test_clipping_scales_the_whole_gradient():
    free, before, unclipped = step(4, 4)
    clipped, _, after = step(4, 4, clip_norm=free.grad_norm / 4)
    assert clipped.grad_norm == free.grad_norm
    for name in before:
        torch.testing.assert_close(
            after[name] - before[name], (unclipped[name] - before[name]) / 4, rtol=1e-3, atol=1e-7
        )


def test_z_loss_is_trained_on_but_not_reported_as_loss():
    plain, _, weights = step(4, 4)
    with_z, _, other = step(4, 3, z_loss=0.1)
    assert with_z.loss == pytest.approx(plain.loss, rel=1e-6)
    assert plain.z_loss == 0 and with_z.z_loss == pytest.approx(math.log(40 * math.exp(0.5)) ** 2, rel=0.1)
    assert any(not torch.allclose(weights[name], other[name], atol=1e-5) for name in weights)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_loss_is_reported_before_any_update(value):
    def spoil(model):
        with torch.no_grad():
            model.blocks[0].mlp.down.weight[0, 0] = value

    result, before, after = step(4, 2, spoil=spoil)
    assert not result.finite and result.bad_ranks == [0]
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0, equal_nan=True)


def test_a_spike_leaves_weights_and_optimizer_as_they_were():
    calm = SpikeGuard(window_tokens=1e6)
    for tokens in range(40):
        assert not calm.is_spike(-40 + tokens, 3.0 + 0.01 * (tokens % 2), 1.0)
    result, before, after = step(4, 2, guard=calm)  # ln 40 nats
    assert result.skipped and result.finite and calm.history[-1] == (0, result.loss, result.grad_norm)
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)
    result, before, after = step(4, 2, guard=SpikeGuard(window_tokens=1e6))
    assert not result.skipped and any(not torch.equal(after[name], before[name]) for name in before)
