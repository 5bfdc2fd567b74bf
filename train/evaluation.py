"""What an evaluation measures: held-out losses of a language model, or the known risk of a regression."""

import math
from collections.abc import Mapping

from train.regression import Replicas
from train.run import Run
from train.step import evaluate

_OF_AVERAGES = ("eval_loss", "excess_risk", "excess_risk_error")


def evaluated(run: Run, step: int) -> dict[str, float]:
    """`eval_loss` and what else there is to measure; of every average that has begun `eval_loss_<average>`, and its
    risk where that is known."""
    found = _measured(run)
    averaged: dict[str, float] = {}
    for name in run.averages.begun(step):
        with run.averages.applied(name):
            averaged |= {f"{key}_{name}": value for key, value in _measured(run).items() if key in _OF_AVERAGES}
    return found | averaged


def _measured(run: Run) -> dict[str, float]:
    """Of the weights that the model has now."""
    if isinstance(run.engine.module, Replicas):
        return run.engine.module.measured()
    by_source = {name: evaluate(run.engine, run.eval_batches(name)) for name in run.eval_data}
    loss, bytes_per_token = by_weight(run, by_source), by_weight(run, run.prepared.bytes_per_token_by_source)
    sources = {f"eval_loss/{name}": value for name, value in by_source.items()} if len(by_source) > 1 else {}
    return {"eval_loss": loss, "eval_bits_per_byte": loss / math.log(2) / bytes_per_token, **sources}


def by_weight(run: Run, values: Mapping[str, float]) -> float:
    """The mean of a value per held-out source, weighted as in training."""
    weights = run.prepared.weights
    return sum(weights[name] * values[name] for name in run.eval_data) / sum(weights.values())
