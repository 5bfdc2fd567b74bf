"""Each rule against its formula, and against torch's own where torch has it."""

import math

import pytest
import torch
from torch import nn

from optim.adamw import AdamW
from optim.lion import Lion
from optim.muon import Muon
from optim.normalized_sgd import NormalizedSGD
from optim.plan import Plan
from optim.ramps import ConstantBatch
from optim.schedules import Constant
from optim.sgd import SGD
from optim.shampoo import Shampoo
from optim.soap import SOAP, turned
from optim.swan import SWAN

PLAN = Plan(64 * 30, 16, 0.05, Constant(), ConstantBatch(4))
SHAPES = {"embedding.weight": (12, 6), "a.weight": (6, 9), "b.weight": (9, 6), "c.weight": (6, 6), "norm.weight": (6,)}
HIDDEN = ["a.weight", "b.weight", "c.weight"]
ALL = [
    AdamW(),
    SGD(momentum=0.9),
    NormalizedSGD(),
    NormalizedSGD(norm="per_parameter"),
    Lion(),
    Muon(),
    SWAN(),
    Shampoo(refresh_every=3),
    Shampoo(beta=None),
    SOAP(refresh_every=3),
]


def weights(dtype=torch.float64):
    draw = torch.Generator().manual_seed(1)
    return {
        name: nn.Parameter(torch.randn(s, generator=draw, dtype=torch.float64).to(dtype)) for name, s in SHAPES.items()
    }


def gradients(named, step):
    """Pseudo-random gradients that depend on the step alone."""
    for i, (name, parameter) in enumerate(named.items()):
        draw = torch.Generator().manual_seed(100 * step + i)
        parameter.grad = torch.randn(SHAPES[name], generator=draw, dtype=torch.float64).to(parameter.dtype)


def advance(optimizer, named, steps, lr=0.05):
    for step in steps:
        gradients(named, step)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        optimizer.step()


def trained(settings, steps=8, dtype=torch.float64):
    named = weights(dtype)
    advance(settings.build(named.items(), PLAN), named, range(steps))
    return named


def by_torch(make, names, steps=8, dtype=torch.float64):
    named = {name: p for name, p in weights(dtype).items() if name in names}
    optimizer = make(list(named.values()))
    for step in range(steps):
        everything = weights(dtype)
        gradients(everything, step)
        for name, parameter in named.items():
            parameter.grad = everything[name].grad
        optimizer.step()
    return named


def assert_same(ours, theirs, rtol=1e-12, atol=1e-12):
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def test_adamw_is_torchs_bit_for_bit():
    def make(parameters):
        matrices = [p for p in parameters if p.ndim == 2]
        groups = [{"params": matrices}, {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=0.05, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    for dtype in (torch.float32, torch.float64):
        assert_same(trained(AdamW(), dtype=dtype), by_torch(make, SHAPES, dtype=dtype), 0, 0)


@pytest.mark.parametrize("settings", [SGD(momentum=0.9), SGD(momentum=0.9, nesterov=True), SGD()])
def test_sgd_is_torchs(settings):
    def make(parameters):
        return torch.optim.SGD(parameters, lr=0.05, momentum=settings.momentum, nesterov=settings.nesterov)

    assert_same(trained(settings), by_torch(make, SHAPES), 0, 0)


@pytest.mark.parametrize("settings", [s for s in ALL if hasattr(s, "adamw_lr_scale")], ids=lambda s: type(s).__name__)
def test_the_rest_of_a_matrix_optimizer_is_torchs_adamw_bit_for_bit(settings):
    def make(parameters):
        groups = [{"params": parameters[:1]}, {"params": parameters[1:], "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=0.05, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    assert_same(trained(settings), by_torch(make, ["embedding.weight", "norm.weight"]), 0, 0)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
@pytest.mark.parametrize("adjust_lr", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_torchs_up_to_its_bfloat16_iterations(adjust_lr, nesterov, monkeypatch):
    def make(parameters):
        return torch.optim.Muon(parameters, lr=0.05, nesterov=nesterov, adjust_lr_fn=adjust_lr)

    ours = trained(Muon(adjust_lr=adjust_lr, nesterov=nesterov))
    assert_same(ours, by_torch(make, HIDDEN), rtol=0, atol=0.03)
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda x: x.clone())
    assert_same(ours, by_torch(make, HIDDEN), rtol=1e-10, atol=1e-10)


def test_normalized_sgd_takes_steps_of_the_length_of_its_rate():
    for settings in (NormalizedSGD(), NormalizedSGD(norm="per_parameter")):
        before, after = weights(), trained(settings, steps=1)
        moved = {name: (before[name] - after[name]).detach() for name in SHAPES}
        lengths = torch.stack([x.norm() for x in moved.values()])
        if settings.norm == "global":
            lengths = lengths.norm().reshape(1)
        torch.testing.assert_close(lengths, torch.full_like(lengths, 0.05))
        gradients(before, 0)
        for name, x in moved.items():
            torch.testing.assert_close(x / x.norm(), before[name].grad / before[name].grad.norm())


def test_lion_is_its_formula():
    named, expected, average = trained(Lion(weight_decay=0.2)), weights(), None
    for step in range(8):
        gradients(expected, step)
        p = expected["a.weight"]
        average = torch.zeros_like(p) if average is None else average
        update = torch.sign(0.9 * average + 0.1 * p.grad)
        average = 0.99 * average + 0.01 * p.grad
        p.data = p.data * (1 - 0.05 * 0.2) - 0.05 * update
    torch.testing.assert_close(named["a.weight"], expected["a.weight"])


@pytest.mark.parametrize("beta", [None, 0.9])
def test_shampoo_is_its_formula(beta):
    settings = Shampoo(beta=beta, momentum=0.0, eps=0.0, refresh_every=1, adjust_lr="none", weight_decay=0.0)
    named, expected = trained(settings, steps=5), weights()
    left = right = 0
    for step in range(5):
        gradients(expected, step)
        g = expected["a.weight"].grad
        keep, weight = (1, 1) if beta is None else (beta, 1 - beta)
        left, right = keep * left + weight * g @ g.mT, keep * right + weight * g.mT @ g
        total = 1 if beta is None else 1 - beta ** (step + 1)
        expected["a.weight"].data -= 0.05 * power(left / total, -1 / 4) @ g @ power(right / total, -1 / 4)
    torch.testing.assert_close(named["a.weight"], expected["a.weight"], rtol=1e-6, atol=1e-6)


def power(x, exponent):
    values, vectors = torch.linalg.eigh(x)
    kept = values > 1e-12 * values[-1]
    return (vectors[:, kept] * values[kept] ** exponent) @ vectors[:, kept].mT


def test_soap_is_adam_in_the_eigenbases():
    """Gradients U diag(s) V' keep the bases U and V, so the update is U diag(Adam's of s) V', with torch's own Adam."""
    draw = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, n, generator=draw, dtype=torch.float64)).Q for n in (6, 9))
    s = nn.Parameter(torch.zeros(6, dtype=torch.float64))
    adam, settings, state = torch.optim.Adam([s], lr=1.0, betas=(0.95, 0.9)), SOAP(beta2=0.9, refresh_every=2), {}
    for _ in range(7):
        before = s.detach().clone()
        s.grad = torch.rand(6, generator=draw, dtype=torch.float64) + torch.arange(6, 0, -1)
        adam.step()
        update = settings.direction(u @ torch.diag(s.grad) @ v[:, :6].mT, state)
        expected = u @ torch.diag(before - s.detach()) @ v[:, :6].mT
        torch.testing.assert_close(update, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(32, 32), (256, 256), (128, 256)])
def test_soaps_first_update_is_the_polar_factor_also_in_float32(shape):
    """In the eigenbases a gradient is diagonal and Adam's first update its sign; zeros must not become signs."""
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(gradient.double(), full_matrices=False)
    error = torch.linalg.vector_norm(SOAP().direction(gradient, {}) - u @ vh) / torch.linalg.vector_norm(u @ vh)
    assert error < 0.03


def test_soaps_bases_turn_towards_the_eigenvectors_and_the_second_moments_go_with_them():
    x = torch.diag(torch.tensor([1.0, 5.0, 3.0], dtype=torch.float64))
    identity = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(turned(x, identity).abs(), identity[:, [1, 2, 0]])
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(5, 8, generator=draw, dtype=torch.float64)
    x = x @ x.mT
    basis = torch.linalg.qr(torch.randn(5, 5, generator=draw, dtype=torch.float64)).Q
    for _ in range(200):
        basis = turned(x, basis)
    torch.testing.assert_close(basis.mT @ x @ basis, torch.diag(torch.linalg.eigvalsh(x).flip(0)), rtol=0, atol=1e-6)

    settings, state = SOAP(refresh_every=1, shampoo_beta=0.0), {}
    settings.direction(torch.diag(torch.tensor([3.0, 2.0, 1.0])), state)
    settings.direction(torch.diag(torch.tensor([1.0, 3.0, 2.0])), state)  # the axes are the same, in another order
    seconds = [0.05 * (0.95 * a**2 + b**2) for a, b in ((2, 3), (1, 2), (3, 1))]
    torch.testing.assert_close(state["moment2"], torch.diag(torch.tensor(seconds)))


@pytest.mark.parametrize("settings", ALL, ids=str)
def test_state_restores_bit_for_bit_and_settings_stay_the_configurations(settings, tmp_path):
    for dtype in (torch.float32, torch.float64):
        undisturbed = trained(settings, steps=9, dtype=dtype)
        named = weights(dtype)
        optimizer = settings.build(named.items(), PLAN)
        advance(optimizer, named, range(5))
        torch.save(
            {"weights": {n: p.detach() for n, p in named.items()}, "state": optimizer.state_dict()}, tmp_path / "s"
        )
        saved = torch.load(tmp_path / "s", weights_only=True)
        for group in saved["state"]["param_groups"]:
            group["weight_decay"], group["lr_scale"], group["decay"] = 0.5, 7.0, 0.5  # as of another run
        named = {name: nn.Parameter(saved["weights"][name]) for name in SHAPES}
        restored = settings.build(named.items(), PLAN)
        restored.load_state_dict(saved["state"])
        advance(restored, named, range(5, 9))
        assert_same(named, undisturbed, 0, 0)


@pytest.mark.parametrize("settings", ALL, ids=str)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e15])
def test_gradients_of_low_rank_give_finite_updates(settings, scale):
    """Zero matrices, zero rows and columns, constant rows, one token's outer product; in float32."""
    named = weights(torch.float32)
    optimizer = settings.build(named.items(), PLAN)
    for step in range(12):
        gradients(named, step)
        kind = step % 6
        for parameter in named.values():
            grad = parameter.grad * scale
            if grad.ndim == 2 and kind == 1:
                grad = torch.zeros_like(grad)
            elif grad.ndim == 2 and kind == 2:
                grad[1:] = 0
            elif grad.ndim == 2 and kind == 3:
                grad[:, :-1] = 0
            elif grad.ndim == 2 and kind == 4:
                grad = torch.ones_like(grad) * scale * torch.arange(len(grad))[:, None]
            elif grad.ndim == 2 and kind == 5:
                grad = torch.outer(grad[:, 0], grad[0] / scale)
            parameter.grad = grad
        before = {name: p.detach().clone() for name, p in named.items()}
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        optimizer.step()
        for name in HIDDEN:
            assert named[name].isfinite().all()
            if not isinstance(settings, SGD):
                assert (named[name] - before[name]).norm() < 30 * 0.01 * math.prod(SHAPES[name]) ** 0.5


def test_swan_holds_no_state_of_matrices():
    """In bytes: nothing for hidden matrices; two moments and a step count of each tensor that AdamW has."""
    model = {"embedding.weight": (64, 32), "a.weight": (32, 96), "norm.weight": (32,)}
    held = {}
    for settings in (AdamW(), SWAN()):
        named = {name: nn.Parameter(torch.randn(shape)) for name, shape in model.items()}
        optimizer = settings.build(named.items(), PLAN)
        for parameter in named.values():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        held[type(settings)] = {
            name: sum(t.nbytes for t in optimizer.state.get(parameter, {}).values())
            for name, parameter in named.items()
        }
    assert held[AdamW] == {name: 2 * 4 * math.prod(shape) + 4 for name, shape in model.items()}
    assert held[SWAN] == held[AdamW] | {"a.weight": 0}
