"""The gradient noise scale on gradients whose tr(Sigma) and |G|^2 are known, and on the model's own."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train import measure
from train.model import Transformer, initialize
from train.noise_scale import NoiseScale
from train.shape import Shape

SIZE, SIGNAL, SIGMA = 50, 0.3, 0.7
TRACE = SIZE * SIGMA**2


def measured_step(noise, micro_batches, losses, parameters, tokens=1, world_size=1):
    """One step: sum over valid tokens / valid tokens, a backward pass per micro-batch. Returns what is measured."""
    valid = sum(micro_batches)
    for parameter in parameters:
        parameter.grad = None
    with noise.watch(parameters, world_size / valid):
        for n, loss in zip(micro_batches, losses, strict=True):
            (loss * world_size / valid).backward()
            noise.micro_batch(n)
    grad_norm = torch.stack([p.grad.square().sum() for p in parameters]).sum().sqrt().item() / world_size
    sum_small, m = noise.take().tolist()
    noise.update(sum_small, m, grad_norm, valid, tokens)
    return sum_small, m, grad_norm


def synthetic_losses(weights, micro_batches, generator):
    """Sums of tokens' losses x.w, whose gradients x are N(SIGNAL, SIGMA^2) in each of SIZE coordinates."""
    for n in micro_batches:
        x = SIGNAL + SIGMA * torch.randn(n, SIZE, generator=generator)
        yield (x @ torch.cat(weights)).sum()


@pytest.mark.parametrize("micro_batches", [[4, 4, 4, 4], [7, 1, 3, 0, 2], [1, 30]])
def test_known_noise_and_signal_are_found_within_their_standard_errors(micro_batches):
    generator = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.zeros(n)) for n in (20, 30)]
    noise = NoiseScale(half_life=1e-3)  # forgets at once: each step's own estimates
    steps, B, m = 2000, sum(micro_batches), sum(n > 0 for n in micro_batches)
    totals = torch.zeros(2, dtype=torch.float64)
    for step in range(1, steps + 1):
        losses = synthetic_losses(weights, micro_batches, generator)
        _, count, _ = measured_step(noise, micro_batches, losses, weights, tokens=step)
        assert count == m
        state = noise.state_dict()
        totals += torch.tensor([state["trace"], state["signal"]]) / steps
    # (m - 1) trace = SIGMA^2 chi^2 with (m - 1) SIZE degrees of freedom, however ragged; |g|^2 is independent of it
    var_trace = TRACE**2 * 2 / (SIZE * (m - 1))
    signal = SIZE * SIGNAL**2
    var_signal = 4 * signal * SIGMA**2 / B + 2 * SIZE * SIGMA**4 / B**2 + var_trace / B**2
    assert totals[0].item() == pytest.approx(TRACE, abs=4 * math.sqrt(var_trace / steps))
    assert totals[1].item() == pytest.approx(signal, abs=4 * math.sqrt(var_signal / steps))


def test_the_value_is_the_ratio_of_the_means_and_not_the_mean_of_ratios():
    noise = NoiseScale(half_life=1.0)
    noise.update(sum_small=30.0, m=2, grad_norm=1.0, valid_tokens=10, tokens=1)  # trace 20, signal -1
    assert noise.value is None
    noise.update(sum_small=60.0, m=2, grad_norm=2.0, valid_tokens=10, tokens=3)  # trace 20, signal 2
    # weights: 1/2 at first, a quarter of it after two half-lives, and 3/4 for the second
    assert noise.value == pytest.approx((20 * 0.5 / 4 + 20 * 0.75) / (-1 * 0.5 / 4 + 2 * 0.75))


SHAPE = Shape(d_model=16, n_layers=2, n_heads=2, d_ff=24, vocab_size=40, tied=True)


def model_loss(model, tokens):
    """Sum of the next token's cross-entropy over rows of `tokens`."""
    logits = model(tokens[:, :-1])[..., :40]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")


def model_and_rows(rows):
    model = Transformer(SHAPE, 40)
    initialize(model, 0)
    return model, torch.randint(0, 40, (rows, 9), generator=torch.Generator().manual_seed(1))


@given(st.lists(st.integers(1, 4), min_size=2, max_size=4), st.sampled_from([1, 4]))
def test_hooks_see_each_micro_batch_of_a_model_with_tied_weights_before_it_is_accumulated(rows, world_size):
    model, tokens = model_and_rows(sum(rows))
    parameters = list(model.parameters())
    parts = tokens.split(rows)
    counts = [8 * n for n in rows]
    expected = 0.0
    for n, part in zip(counts, parts, strict=True):
        gradients = torch.autograd.grad(model_loss(model, part) / n, parameters)
        expected += n * sum(g.double().square().sum().item() for g in gradients)
    noise = NoiseScale(1e9)
    losses = (model_loss(model, part) for part in parts)
    sum_small, m, _ = measured_step(noise, counts, losses, parameters, world_size=world_size)
    assert m == len(rows) and sum_small == pytest.approx(expected, rel=1e-5)


def test_hooks_change_no_gradient_and_are_gone_after_the_step():
    model, tokens = model_and_rows(4)
    parameters = list(model.parameters())
    noise = NoiseScale(1e9)
    measured_step(noise, [16, 16], (model_loss(model, part) for part in tokens.split(2)), parameters)
    watched = [p.grad.clone() for p in parameters]
    for p in parameters:
        p.grad = None
    for part in tokens.split(2):
        (model_loss(model, part) / 32).backward()
        noise.micro_batch(16)
    assert all(torch.equal(a, p.grad) for a, p in zip(watched, parameters, strict=True))
    assert noise.take().tolist() == [0, 0] and not any(p._backward_hooks for p in parameters)


def test_hooks_are_gone_when_a_step_fails():
    model, _ = model_and_rows(2)
    noise = NoiseScale(1e9)
    with pytest.raises(RuntimeError, match="broken"), noise.watch(model.parameters(), 1.0):
        raise RuntimeError("broken")
    assert not any(p._backward_hooks for p in model.parameters())
    noise.micro_batch(4)
    assert noise.take().tolist() == [0, 0]


def test_one_micro_batch_gives_none_and_says_why_once(capsys):
    measure.warn_once.cache_clear()
    noise = NoiseScale(1e9)
    for tokens in (1, 2):
        noise.update(sum_small=4.0, m=1, grad_norm=1.0, valid_tokens=4, tokens=tokens)
    assert noise.value is None and noise.state_dict() == NoiseScale(1e9).state_dict()
    assert capsys.readouterr().err.count("launch.micro_batch_size") == 1


@pytest.mark.parametrize("spoilt", [{"sum_small": math.nan}, {"grad_norm": math.inf}, {"grad_norm": math.nan}])
def test_steps_that_are_not_finite_leave_the_means_as_they_were(spoilt):
    good = {"sum_small": 60.0, "m": 2, "grad_norm": 2.0, "valid_tokens": 10, "tokens": 1}
    noise = NoiseScale(10)
    noise.update(**good)
    before = noise.state_dict()
    noise.update(**(good | {"tokens": 2} | spoilt))
    assert noise.state_dict() == before and noise.value == pytest.approx(10.0)


@given(st.integers(0, 6))
def test_a_resumed_run_goes_on_with_the_same_means(resumed_after):
    steps = [(50.0 + i, 2, 1.0 + i / 4, 10, 3 * i + 1) for i in range(6)]
    whole = NoiseScale(4.0)
    for step in steps:
        whole.update(*step)
    first, second = NoiseScale(4.0), NoiseScale(4.0)
    for step in steps[:resumed_after]:
        first.update(*step)
    second.load_state_dict(first.state_dict())
    for step in steps[resumed_after:]:
        second.update(*step)
    assert second.state_dict() == whole.state_dict()
