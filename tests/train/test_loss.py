import weakref

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from data.batches import IGNORED
from train.loss import linear_cross_entropy

D, V, VOCAB = 12, 40, 33


def case(positions, seed=0, vocab=VOCAB, ignored=0.3):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(positions, D, generator=generator)
    weight = torch.randn(V, D, generator=generator)
    targets = torch.randint(0, vocab, (positions,), generator=generator)
    targets[torch.rand(positions, generator=generator) < ignored] = IGNORED
    return x.requires_grad_(), weight.requires_grad_(), targets


def plain(x, weight, targets, vocab, z_loss):
    """The same sums from all logits at once."""
    logits = F.linear(x, weight)[:, :vocab]
    loss = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    z = (torch.logsumexp(logits, -1).square() * (targets != IGNORED)).sum()
    return loss + z_loss * z, loss, z if z_loss else torch.zeros(())


def gradients(sums, x, weight, scale=1.0):
    return torch.autograd.grad(sums[0] * scale, (x, weight))


def assert_equal(a, b, factor):
    """The norm of the difference is 1e-6 of the norm, or float32's rounding of probabilities times their `factor`."""
    assert (a.double() - b.double()).norm() <= 1e-6 * b.double().norm() + 1e-7 * factor.double().norm()


@given(
    positions=st.integers(1, 40),
    rows=st.integers(1, 50),
    vocab=st.integers(1, V),
    z_loss=st.sampled_from([0.0, 1e-4, 0.3]),
    ignored=st.sampled_from([0.0, 0.5, 0.9]),
    seed=st.integers(0, 100),
)
def test_values_and_gradients_are_the_plain_ones_for_every_chunk(positions, rows, vocab, z_loss, ignored, seed):
    x, weight, targets = case(positions, seed, vocab, ignored)
    exact = plain(x.double(), weight.double(), targets, vocab, z_loss)
    sums = linear_cross_entropy(x, weight, targets, vocab, z_loss, chunk_elements=rows * V)
    for value, expected in zip(sums, exact, strict=True):
        assert value.dtype == torch.float32 and value.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-6)
    found, expected = gradients(sums, x, weight), gradients(exact, x, weight)
    assert_equal(found[0], expected[0], weight)
    assert_equal(found[1], expected[1], x)


def test_only_the_objective_is_differentiated_and_the_outer_scale_counts():
    x, weight, targets = case(20)
    sums = linear_cross_entropy(x, weight, targets, VOCAB, 0.1)
    assert [s.requires_grad for s in sums] == [True, False, False]
    torch.testing.assert_close(sums[0].detach(), sums[1] + 0.1 * sums[2], rtol=0, atol=0)
    expected = gradients(plain(x, weight, targets, VOCAB, 0.1), x, weight, scale=0.37)
    for gradient, reference in zip(gradients(sums, x, weight, scale=0.37), expected, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-5, atol=1e-6)


def test_a_fully_masked_micro_batch_gives_zeros():
    x, weight, targets = case(9, ignored=1.1)
    sums = linear_cross_entropy(x, weight, targets, VOCAB, 0.1, chunk_elements=2 * V)
    assert [s.item() for s in sums] == [0, 0, 0]
    assert all((gradient == 0).all() for gradient in gradients(sums, x, weight))


def test_padding_of_the_vocabulary_has_no_probability_and_no_gradient():
    x, weight, targets = case(9)
    loss = linear_cross_entropy(x, weight, targets, VOCAB)[1]
    with torch.no_grad():
        weight[VOCAB:] *= 1e4
    sums = linear_cross_entropy(x, weight, targets, VOCAB)
    assert sums[1] == loss
    gradient = gradients(sums, x, weight)[1]
    assert (gradient[VOCAB:] == 0).all() and (gradient[:VOCAB] != 0).all()


def test_huge_logits_do_not_overflow_and_those_not_finite_are_not_hidden():
    x, weight, targets = case(9, ignored=0)
    with torch.no_grad():
        weight *= 1e5
    sums = linear_cross_entropy(x, weight, targets, VOCAB)
    assert sums[1].item() == pytest.approx(plain(x, weight, targets, VOCAB, 0)[1].item(), rel=1e-6)
    assert all(gradient.isfinite().all() for gradient in gradients(sums, x, weight))
    with torch.no_grad():
        x[4, 2] = torch.inf
    assert not linear_cross_entropy(x, weight, targets, VOCAB, chunk_elements=2 * V)[1].isfinite()


class Logits(TorchDispatchMode):
    """The most logits alive at once: elements of distinct storages with as many columns as the vocabulary."""

    def __init__(self, weight):
        super().__init__()
        self.known, self.alive, self.peak, self.products = {weight.untyped_storage()._cdata}, {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.products += func is torch.ops.aten.mm.default or func is torch.ops.aten.mm.out
        if isinstance(out, torch.Tensor) and out.ndim and out.shape[-1] == V:
            storage = out.untyped_storage()
            if storage._cdata not in self.known and storage._cdata not in self.alive:
                self.alive[storage._cdata] = out.numel()
                weakref.finalize(storage, self.alive.pop, storage._cdata)
                self.peak = max(self.peak, sum(self.alive.values()))
        return out


@pytest.mark.parametrize("rows", [1, 4, 20])
def test_never_more_than_one_chunk_of_logits_is_alive(rows):
    x, weight, targets = case(40)
    with Logits(weight) as chunked:
        gradients(linear_cross_entropy(x, weight, targets, VOCAB, 0.1, chunk_elements=rows * V + 7), x, weight)
    with Logits(weight) as whole:
        gradients(plain(x, weight, targets, V, 0.1), x, weight)
    assert chunked.peak == rows * V and whole.peak >= 40 * V


def test_nothing_is_differentiated_where_gradients_are_off():
    x, weight, targets = case(12)
    with Logits(weight) as with_gradients:
        expected = linear_cross_entropy(x, weight, targets, VOCAB, 0.1, chunk_elements=4 * V)
    with torch.no_grad(), Logits(weight) as without:
        sums = linear_cross_entropy(x, weight, targets, VOCAB, 0.1, chunk_elements=4 * V)
    assert (with_gradients.products, without.products) == (9, 3)  # logits of three chunks, and twice their gradients
    assert all(torch.equal(a, b) for a, b in zip(sums, expected, strict=True)) and not sums[0].requires_grad


def test_in_bf16_sums_are_float32_and_more_chunks_cost_no_accuracy():
    x, weight, targets = (a.detach() for a in case(512, ignored=0.1))
    exact = gradients(plain(a := x.clone().requires_grad_(), b := weight.clone().requires_grad_(), targets, V, 0), a, b)

    def errors(chunks):
        x16, master = x.bfloat16().requires_grad_(), weight.clone().requires_grad_()
        sums = linear_cross_entropy(x16, master, targets, V, chunk_elements=512 * V // chunks)
        found = gradients(sums, x16, master)
        assert sums[0].dtype == torch.float32 and [g.dtype for g in found] == [torch.bfloat16, torch.float32]
        return [((g.double() - e.double()).norm() / e.norm()).item() for g, e in zip(found, exact, strict=True)]

    one, many = errors(1), errors(256)
    assert max(one) < 1e-2
    assert many[1] < 1.3 * one[1]
