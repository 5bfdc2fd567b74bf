"""What a configuration must hold for its parts to fit each other: ValueError with the key, the value and the fix."""

from collections.abc import Sequence
from typing import Any

from hydra.utils import instantiate

from data.generated import Generated
from train.context_parallel.hybrid import fewest_ranks
from train.context_parallel.placement import Context
from train.shape import GOES_WITH, Regression, Shape


def check(good: bool, key: str, value: Any, fix: str) -> None:
    if not good:
        raise ValueError(f"{key}={value}: {fix}.")


def check_regression(config: dict[str, Any], shape: Shape | Regression, sources: Sequence[Any]) -> None:
    """Problems with a known answer go with their model, whose replicas nothing but the plan may couple."""
    generated, target = any(isinstance(source, Generated) for source in sources), config["model"]["_target_"]
    if not generated and not isinstance(shape, Regression):
        return
    (source,) = sources if generated and len(sources) == 1 else (None,)
    own = isinstance(shape, Regression) and isinstance(source, Generated) and shape.loss == source.loss
    check(own, "model._target_", target, GOES_WITH)
    assert isinstance(shape, Regression) and isinstance(source, Generated)
    check(shape.dimension == source.dimension, "model.dimension", shape.dimension, f"rows have {source.dimension}")
    whole = "a sample is one row of the problem: use 1"
    check(config["sequence_length"] == 1, "sequence_length", config["sequence_length"], whole)
    check(config["clip_norm"] == 0, "clip_norm", config["clip_norm"], "it would couple the replicas: use 0")
    check(config["z_loss"] == 0, "z_loss", config["z_loss"], "a regression has none: use 0")
    check(config["spike_guard"] is None, "spike_guard", config["spike_guard"], "it would couple the replicas: use none")
    check(config["precision"] == "float32", "precision", config["precision"], "use float32, for an exact comparison")
    name = instantiate(config["launch"]["strategy"]).name
    check(name in ("single", "ddp"), "launch.strategy.name", name, "a regression takes strategy=single or ddp")


def check_context(config: dict[str, Any], shape: Shape | Regression) -> None:
    """A layout that the sequences, the model and the devices can be spread over."""
    context, launch = Context.of(config["context"]), config["launch"]
    for name, value in config["context"]["machine"].items():
        good = value is None or value > 0 or (name == "latency" and value == 0)
        check(good, f"context.machine.{name}", value, "use a positive number, or null")
    if context.name is None:
        return
    check(isinstance(shape, Shape), "context", context.name, "rows of a regression are no sequences: leave it as it is")
    assert isinstance(shape, Shape)
    if context.capacity is None:
        context.check_model(config["sequence_length"], shape.n_heads, shape.kv_heads)
        context.check_world(launch["devices"])
        return
    key, tokens, rows = "context.capacity", context.capacity, launch["micro_batch_size"]
    check(launch["devices"] > 1, key, tokens, "one device is no pool: use launch.devices=2 or more")
    check(shape.document_mask, key, tokens, "documents must not see each other: use model.document_mask=true")
    check(not launch["compile"], key, tokens, "every micro-batch has a shape of its own: use launch.compile=false")
    check(rows is None, "launch.micro_batch_size", rows, "context.capacity says what a rank takes at once: use null")
    fewest_ranks([config["sequence_length"]], launch["devices"], tokens)
