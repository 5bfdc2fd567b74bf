"""muP: the standard parametrization at the base width, and changes of activations that do not depend on the width."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from conf.points import expand
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
from train.model import Transformer, initialize
from train.shape import Shape

VOCABULARY, ROWS, LENGTH = 512, 16, 32
WIDTHS = (32, 64, 128, 256)
MUP = {"parametrization": "mup", "base_width": 32, "base_head_dim": 16}
RULES = {
    "adamw": (AdamW(), 0.01),
    "lion": (Lion(), 0.003),
    "sgd": (SGD(), 1.0),
    "normalized_sgd": (NormalizedSGD(), 0.3),
    "normalized_sgd_per_parameter": (NormalizedSGD(norm="per_parameter"), 0.3),
    "muon": (Muon(), 0.02),
    "muon_original": (Muon(adjust_lr="original"), 0.02),
    "shampoo": (Shampoo(refresh_every=1), 0.02),
    "swan": (SWAN(), 0.02),
}


def shape_of(width, heads="more", **options):
    """Heads of 16, or two heads that grow."""
    count = width // 16 if heads == "more" else 2
    options = {"qk_norm": True} | options
    return Shape(width, 2, count, 2 * width, vocab_size=VOCABULARY, **options)


def batch():
    tokens = torch.randint(0, VOCABULARY, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(7))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def trained(settings, rate, shape, steps=3):
    """A model after some steps on one batch; what its activations and its targets' logits were and are."""
    model = Transformer(shape, VOCABULARY)
    initialize(model, 0)
    plan = Plan(ROWS * LENGTH * steps, LENGTH, rate, Constant(), ConstantBatch(ROWS))
    optimizer = settings.build(model.named_parameters(), plan, shape.growth)
    before = activations(model)
    for _ in range(steps):
        inputs, targets = batch()
        optimizer.zero_grad()
        (model(inputs, None, targets)[0] / targets.numel()).backward()
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        optimizer.step()
    return model, before, activations(model)


@torch.no_grad()
def activations(model):
    seen = {}
    places = ["embedding", "blocks.0", "blocks.1.attention", "blocks.1.mlp", "blocks.1"]
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda m, given, out, name=name: seen.update({name: out}))
        for name in places
    ]
    inputs, targets = batch()
    seen["target"] = model(inputs).gather(2, targets[..., None])
    for hook in hooks:
        hook.remove()
    return seen


def growth_of_changes(settings, rate, **options):
    """Place -> the power of the width with which the change of its activations grows over 32 ... 256.

    Of the logits, how much those of the targets rise; others change by noise, which falls with the width.
    """
    changes = []
    for width in WIDTHS:
        _, before, after = trained(settings, rate, shape_of(width, **options))
        change = {name: after[name] - before[name] for name in after}
        rise = {"target": change.pop("target").mean().item()}
        changes.append(rise | {name: x.square().mean().sqrt().item() for name, x in change.items()})
    return {name: np.polyfit(np.log(WIDTHS), np.log([change[name] for change in changes]), 1)[0] for name in changes[0]}


@pytest.mark.parametrize("name", RULES)
def test_steps_change_activations_by_as_much_at_every_width(one_thread, name):
    powers = growth_of_changes(*RULES[name], **MUP)
    assert max(abs(power) for power in powers.values()) < 0.3, powers


@pytest.mark.parametrize(
    "options", [{"heads": "larger"}, {"heads": "larger", "qk_norm": False}, {"tied": True}], ids=str
)
def test_also_with_larger_heads_and_a_tied_head(one_thread, options):
    powers = growth_of_changes(*RULES["adamw"], **MUP, **options)
    assert max(abs(power) for power in powers.values()) < 0.3, powers


@pytest.mark.parametrize(
    ("name", "place", "least", "most"),
    [
        ("adamw", "blocks.1", 0.4, 1),
        ("adamw", "target", 0.5, 1.5),
        ("sgd", "target", 0.5, 1.5),
        ("lion", "blocks.1", 0.4, 1),
        ("muon", "blocks.1", 0.4, 0.8),
        ("sgd", "embedding", -1, -0.4),
        ("normalized_sgd", "embedding", -1.2, -0.7),
        ("normalized_sgd_per_parameter", "embedding", -0.6, -0.35),
    ],
)
def test_in_the_standard_parametrization_they_grow_or_vanish(one_thread, name, place, least, most):
    assert least < growth_of_changes(*RULES[name])[place] < most


@pytest.mark.parametrize("name", [*RULES, "soap"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_base_width_is_the_standard_parametrization_bit_for_bit(one_thread, name, tied):
    settings, rate = RULES.get(name, (SOAP(), 0.01))
    shape = shape_of(32, tied=tied)
    standard, _, expected = trained(settings, rate, shape, steps=2)
    model, _, found = trained(settings, rate, replace(shape, **MUP), steps=2)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), standard.parameters(), strict=True))


def test_scores_and_logits_start_as_the_table_says():
    """Attention scores by the size of the head, logits by m; the head is drawn as at the base width."""
    shape = shape_of(256, heads="larger", **MUP)
    model, standard = Transformer(shape, VOCABULARY), Transformer(replace(shape, parametrization=None), VOCABULARY)
    for made in (model, standard):
        initialize(made, 0)
    for name, weight in standard.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), weight * (8**0.5 if name == "head.weight" else 1))
    assert model.head.weight.std().item() == pytest.approx(32**-0.5, rel=0.02)
    assert model.blocks[0].attention.scale == pytest.approx(16**0.5 / 128)  # that of 1/sqrt(16) at the base's 16
    x = torch.randn(2, 3, 256, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.head(x), standard.head(x) * 8**-0.5)  # 8^(1/2) from the head's draw, over m = 8


def test_the_loss_is_that_of_the_logits():
    model = Transformer(shape_of(64, **MUP), VOCABULARY)
    initialize(model, 0)
    inputs, targets = batch()
    _, loss, _ = model(inputs, None, targets)
    expected = torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="sum")
    torch.testing.assert_close(loss, expected)


@pytest.mark.usefixtures("hydra_conf")
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.parametrization=mup"], "model.parametrization=mup needs model.base_width"),
        (["model.parametrization=ntk"], "model.parametrization='ntk' is unknown: use mup"),
        (["model.parametrization=mup", "model.base_width=0"], "model.base_width=0 must be at least 1"),
        (["model.parametrization=mup", "model.base_width=8", "optimizer=soap"], "optimizer SOAP has no rate"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_trained(tiny, overrides, message):
    with pytest.raises(ValueError) as error:
        expand([[*tiny, *overrides]])
    assert message in str(error.value)


@pytest.mark.usefixtures("hydra_conf")
def test_a_run_of_the_standard_parametrization_is_named_as_before(tiny):
    (point,) = expand([tiny])
    assert not {"parametrization", "base_width", "base_head_dim"} & {k for k, v in point.config["model"].items() if v}
    wide = expand([[*tiny, "model.parametrization=mup", "model.base_width=8"]])[0]
    assert wide.run_id != point.run_id
    assert {group.lr_scale for group in wide.optimizer_groups} == {0.5, 1.0}


def test_a_run_trains_at_the_rates_of_its_groups(make, life):
    _, run = life(make("run", "model.parametrization=mup", "model.base_width=8"), steps=1)
    scales = {group["lr_scale"] for group in run.engine.optimizer.param_groups}
    assert scales == {0.5, 1.0} and run.engine.module.head.growth == 2


@pytest.mark.parametrize(("strategy", "count"), [("fsdp", 2), ("zero3", 2)])
def test_strategies_train_the_run_that_one_device_trains(pool, make, logged, strategy, count):
    """The model is twice as wide as its base: groups have rates of their own."""
    mup = ["model.parametrization=mup", "model.base_width=8", "total_tokens=2000"]
    single, split = make("single", *mup), make("split", *mup, f"strategy={strategy}", f"launch.devices={count}")
    assert pool.train(single) == pool.train(split, count) == "completed"
    losses = [[row["loss"] for row in logged(point.folder)] for point in (single, split)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
