"""What is checked about an optimizer before anything is trained."""

from dataclasses import dataclass

import pytest
from hydra.utils import instantiate

from conf.points import compose_config, expand, identity
from optim.adamw import AdamW
from optim.lion import Lion
from optim.muon import Muon
from optim.normalized_sgd import NormalizedSGD
from optim.sgd import SGD
from optim.shampoo import Shampoo
from optim.soap import SOAP
from optim.swan import SWAN
from train import strategies
from train.strategies import DDP, Single, check_optimizer

pytestmark = pytest.mark.usefixtures("hydra_conf")

CLASSES = {
    "adamw": AdamW,
    "sgd": SGD,
    "normalized_sgd": NormalizedSGD,
    "lion": Lion,
    "muon": Muon,
    "swan": SWAN,
    "shampoo": Shampoo,
    "soap": SOAP,
}
WHOLE = ["muon", "swan", "shampoo", "soap", "normalized_sgd"]


@dataclass(frozen=True)
class Sharded:
    """A strategy that splits every matrix."""

    name = "sharded"
    splits_matrices = True

    def check(self, world_size):
        pass


@pytest.mark.parametrize("name", CLASSES)
def test_the_files_say_what_the_classes_default_to(name, tiny):
    described = compose_config([*tiny, f"optimizer={name}"])["optimizer"]
    settings = instantiate(described)
    expected = vars(CLASSES[name]())
    assert {key: tuple(v) if key == "coefficients" else v for key, v in vars(settings).items()} == expected
    assert described.keys() - {"_target_"} == expected.keys(), "every field can be set"


def test_fields_added_later_are_no_part_of_an_adamw_runs_identity(tiny):
    assert set(identity(compose_config(tiny))["optimizer"]) == {"_target_", "beta1", "beta2", "eps", "weight_decay"}


@pytest.mark.parametrize("name", WHOLE)
def test_a_rule_for_whole_matrices_is_refused_where_they_are_split(name, tiny, monkeypatch):
    monkeypatch.setattr(strategies, "Sharded", Sharded, raising=False)
    with pytest.raises(ValueError) as error:
        expand([[*tiny, f"optimizer={name}", "launch.strategy._target_=train.strategies.Sharded"]])
    for part in (CLASSES[name].__name__, "strategy=sharded", "strategy=ddp", "optimizer=adamw"):
        assert part in str(error.value)


def test_other_optimizers_and_strategies_go_together():
    for settings in (AdamW(), SGD(), Lion()):
        check_optimizer(Sharded(), settings)
    for strategy in (Single(), DDP()):
        check_optimizer(strategy, Muon())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.timescale=0.2"], "give one of them and set the other to null"),
        (["optimizer.weight_decay=null", "optimizer.timescale=1e-9"], "Use timescale >"),
        (["optimizer=muon", "optimizer.coefficients=[1,2]"], "optimizer.coefficients=[1, 2]: give three numbers"),
        (["optimizer=muon", "optimizer.adjust_lr=big"], "optimizer.adjust_lr='big'"),
        (["optimizer=swan", "optimizer.tolerance=1"], "optimizer.tolerance=1"),
        (["optimizer=soap", "optimizer.refresh_every=2.5"], "optimizer.refresh_every=2.5: a whole number is needed"),
        (["optimizer.decay_follows_schedule=maybe"], "optimizer.decay_follows_schedule=maybe: true or false is needed"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_trained(tiny, overrides, message):
    with pytest.raises(ValueError) as error:
        expand([[*tiny, *overrides]])
    assert message in str(error.value)
