"""Averaged weights of real runs, in this process: what they hold, that they survive a stop, and disturb nothing."""

import shutil

import numpy as np
import pytest
import torch
import yaml
from lightning.fabric import Fabric

from conf.points import expand
from data.files import write_atomic, write_json
from data.prepare import prepare
from data.records import load_runs
from optim.averaging import EWA, Tail
from optim.plan import Plan
from optim.ramps import ConstantBatch
from optim.schedules import Constant
from scaling.wording import choices
from train import evaluation
from train.averages import Averages
from train.engine import TorchEngine
from train.run import build_run

pytestmark = pytest.mark.usefixtures("hydra_conf", "one_thread")

STANDARD = ["averages=standard", "+averages.ewa={_target_:optim.averaging.EWA,decay:0.9}"]
KEYS = {"eval_loss_half_life", "eval_loss_growing", "eval_loss_tail", "eval_loss_ewa"}


@pytest.fixture
def make(tiny, cache):
    """Override lists -> a point that is ready to train, its record in a new folder."""

    def make(*overrides):
        (point,) = expand([[*tiny, "launch.log_every_tokens=1", *overrides]])
        prepare(point.config["data"], point.config["tokenizer"], cache, processes=1)
        shutil.rmtree(point.folder, ignore_errors=True)
        point.folder.mkdir(parents=True)
        return point

    return make


@pytest.fixture
def rows(logged):
    return lambda point: logged(point.folder)


def counts(point):
    """What every iterate counts at the end of the run, the initial weights first, by average: written out."""
    tokens = np.append(point.plan.steps().tokens_before, point.plan.total_tokens)
    half_life, t = point.config["averages"]["half_life"]["tokens"], np.arange(len(tokens))
    keeps = 2 ** (-25 / (t[1:] + 1))
    by_name = {
        "half_life": 2 ** (-(tokens[-1] - tokens) / half_life) * np.diff(tokens, prepend=0).astype(bool),
        "growing": np.append(np.prod(keeps), [(1 - keeps[i]) * np.prod(keeps[i + 1 :]) for i in range(len(keeps))]),
        "tail": tokens > 0.8 * tokens[-1],
        "ewa": 0.9 ** (t[-1] - t) * (t > 0),
    }
    # the decay of a step is that of its tokens: the last one is short
    by_name["half_life"] = by_name["half_life"] * (1 - 2 ** (-np.diff(tokens, prepend=0) / half_life))
    return {name: count / count.sum() for name, count in by_name.items()}


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_averages_are_the_weighted_sums_of_all_iterates_in_float32(
    life, weights, averaged, make, precision, monkeypatch
):
    iterates = []
    update = Averages.update

    def recorded(self, step):
        update(self, step)
        iterates.append({p.name: p.weights.double() for fragments in self.engine.groups() for p in fragments})

    point = make(*STANDARD, f"precision={precision}")
    initial = {name: w.double() for name, w in weights(build_run(point.config, point.folder)).items()}
    monkeypatch.setattr(Averages, "update", recorded)
    status, run = life(point)
    assert status == "completed" and len(iterates) == 34
    by_name = counts(point)
    for name, state in averaged(run).items():
        for parameter, value in state.items():
            assert value.dtype == torch.float32
            expected = sum(c * w[parameter] for c, w in zip(by_name[name], [initial, *iterates], strict=True) if c)
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6, msg=f"{name} {parameter}")


def test_an_average_is_evaluated_under_its_own_key_from_its_first_iterate_on(rows, life, averaged, make):
    point = make(*STANDARD)
    _, run = life(point)
    evaluated = [row for row in rows(point) if "eval_loss" in row]
    assert [KEYS - row.keys() for row in evaluated] == [{"eval_loss_tail"}] * 3 + [set(), set()]
    for name, state in averaged(run).items():
        run.averages._put({(parameter, 0): value for parameter, value in state.items()})
        loss = evaluation.evaluated(run, 0)["eval_loss"]
        assert loss == evaluated[-1][f"eval_loss_{name}"] != evaluated[-1]["eval_loss"]


def test_averages_do_not_disturb_training(rows, life, weights, make):
    point, plain = make(*STANDARD), make()
    _, run = life(point)
    _, expected = life(plain)
    assert [{k: v for k, v in row.items() if k not in KEYS} for row in rows(point)] == rows(plain)
    torch.testing.assert_close(weights(run), weights(expected), rtol=0, atol=0)


@pytest.mark.parametrize("stops", [[1], [7, 1, 20], [33]])
def test_a_stopped_run_goes_on_with_its_averages_bit_for_bit(rows, life, averaged, make, stops):
    point = make(*STANDARD)
    _, run = life(point)
    expected, undisturbed = averaged(run), rows(point)
    make(*STANDARD)
    for steps in stops:
        assert life(point, steps)[0] == "preempted"
    status, run = life(point)
    assert status == "completed" and rows(point) == undisturbed
    torch.testing.assert_close(averaged(run), expected, rtol=0, atol=0)


def test_the_final_losses_of_averages_are_columns_and_not_choices(life, make):
    points = [make(*STANDARD, "averages.tail.start=0.5"), make(*STANDARD), make()]
    for point in points:
        life(point)
        write_atomic(point.folder / "config.yaml", yaml.safe_dump(point.config))
        write_json(point.folder / "run.json", {"run_id": point.run_id, "N": 1})
    runs = load_runs(points[0].folder.parent)
    assert runs[sorted(KEYS)].notna().all(axis=1).sum() == 2
    assert runs["averages.tail.start"].nunique() == 2
    assert not [name for name in choices(runs) if "averages" in name or "eval" in name]


@pytest.fixture
def model():
    return torch.nn.Linear(3, 2)


def averages_of(model, **settings):
    fabric = Fabric(accelerator="cpu", devices=1)
    engine = TorchEngine(fabric, model, lambda module: torch.optim.SGD(module.parameters()), clip_norm=0.0)
    return Averages(settings, engine, Plan(40, 1, 1.0, Constant(), ConstantBatch(4)))


def test_the_models_own_weights_come_back_also_when_evaluation_fails(model):
    averages = averages_of(model, tail=Tail(0.5), ewa=EWA(0.5))
    own = {name: p.detach().clone() for name, p in model.named_parameters()}
    places = [p.data_ptr() for p in model.parameters()]
    with torch.no_grad():
        averages._averaged["ewa"]["weight", 0].fill_(3.0)
    with pytest.raises(RuntimeError, match="evaluation"), averages.applied("ewa"):
        assert (model.weight == 3).all()
        raise RuntimeError("evaluation")
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), own[name], rtol=0, atol=0)
        assert parameter.requires_grad
    assert [p.data_ptr() for p in model.parameters()] == places
    assert (averages._averaged["ewa"]["weight", 0] == 3).all()
