import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.fabric import Fabric

from data.batches import Batches
from data.order import EvenlySpaced
from train.model import Transformer, initialize
from train.shape import Shape
from train.step import evaluate, loss_sum, optimizer_step, z_sum

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


def setup():
    fabric = Fabric(accelerator="cpu", devices=1)
    model = Transformer(SHAPE, 40)
    initialize(model, 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    return fabric, *fabric.setup(model, optimizer)


def step(samples, micro_batch_size, clip_norm=0.0, z_loss=0.0, lr=0.5, spoil=None):
    fabric, model, optimizer = setup()
    if spoil:
        spoil(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    result = optimizer_step(
        fabric, model, optimizer, batches(samples, micro_batch_size), samples * LENGTH, lr, clip_norm, z_loss
    )
    return result, before, {name: p.detach() for name, p in model.named_parameters()}


@given(st.integers(1, 12), st.integers(1, 13))
def test_a_step_is_the_same_for_every_micro_batch_size(samples, micro_batch_size):
    whole, _, expected = step(samples, samples)
    split, _, weights = step(samples, micro_batch_size)
    assert split.loss == pytest.approx(whole.loss, rel=1e-6)
    assert split.grad_norm == pytest.approx(whole.grad_norm, rel=1e-5)
    for name in expected:
        torch.testing.assert_close(weights[name], expected[name], rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_mean_over_all_tokens():
    fabric, model, _ = setup()
    (batch,) = batches(5, 5)
    logits, targets = model(torch.from_numpy(batch.tokens)), torch.from_numpy(batch.targets)
    mean = torch.nn.functional.cross_entropy(logits[..., :40].flatten(0, 1), targets.flatten())
    assert step(5, 2)[0].loss == pytest.approx(mean.item(), rel=1e-6)
    assert evaluate(fabric, model, batches(5, 2)) == pytest.approx(mean.item(), rel=1e-6)


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


def test_z_sum_ignores_padded_rows_and_padded_vocabulary():
    logits, targets = torch.zeros(1, 3, 6), torch.tensor([[1, 2, -100]])
    logits[..., 4:] = -torch.inf
    assert z_sum(logits, targets).item() == pytest.approx(2 * math.log(4) ** 2)
    assert loss_sum(logits, targets).item() == pytest.approx(2 * math.log(4))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_loss_is_reported_before_any_update(value):
    def spoil(model):
        with torch.no_grad():
            model.blocks[0].mlp.down.weight[0, 0] = value

    result, before, after = step(4, 2, spoil=spoil)
    assert not result.finite and result.bad_ranks == [0]
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0, equal_nan=True)
