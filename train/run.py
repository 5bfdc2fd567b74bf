"""Everything one point needs to train, built from its configuration and its prepared data."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning.fabric import Fabric
from torch import nn

from data.batches import Batch, Batches, rank_share, sample_count, sample_order
from data.order import EvenlySpaced, SampleOrder
from data.prepare import Prepared, cache_folder, open_prepared
from optim.plan import Plan, plan_of
from train.averages import Averages
from train.blocks import prepare_blocks
from train.checkpoint import Checkpoints
from train.context_parallel.apply import held, spread
from train.context_parallel.groups import Group, build_groups
from train.context_parallel.placement import Context
from train.context_parallel.pool import Pool, build_pool, shared, spread_over_pool
from train.engine import Engine
from train.measure import warn_once
from train.model import Transformer, initialize
from train.noise_scale import NoiseScale
from train.regression import Replicas
from train.shape import Regression, Shape
from train.spikes import SpikeGuard
from train.strategies import build_fabric
from train.telemetry import Telemetry


@dataclass
class Run:
    """One point, ready to train."""

    config: Mapping[str, Any]
    folder: Path
    fabric: Fabric
    strategy: str
    """its name"""
    plan: Plan
    shape: Shape | Regression
    prepared: Prepared
    order: SampleOrder
    group: Group | None
    """the ranks that share this process's sequences; None: it has them to itself"""
    pool: Pool | None
    """hybrid data parallelism: all ranks share all documents"""
    train_data: Batches
    eval_data: dict[str, tuple[Batches, int]]
    """held-out source -> (its windows, how many)"""
    micro_batch_size: int
    engine: Engine
    averages: Averages
    noise: NoiseScale
    guard: SpikeGuard | None
    telemetry: Telemetry
    checkpoints: Checkpoints
    loggers: list[Any]

    def micro_batches(self, offset: int, batch_size: int) -> list[Batch]:
        """This rank's micro-batches of the step that consumes `batch_size` samples from `offset` on."""
        return list(self._of(self.train_data, offset, batch_size))

    def eval_batches(self, source: str) -> Iterator[Batch]:
        """This rank's micro-batches of a held-out source."""
        data, samples = self.eval_data[source]
        at_once = int(self.plan.segments.batch_size[0]) if self.pool else samples  # a pool has all of it in memory
        for offset in range(0, samples, at_once):
            yield from self._of(data, offset, min(at_once, samples - offset))

    def share(self, offset: int, batch_size: int, rank: int) -> range:
        """The samples of a step that `rank` has to do with."""
        if self.pool:
            return range(offset, offset + batch_size)
        return rank_share(offset, batch_size, rank // self._sharing, self.data_ranks)

    @property
    def data_ranks(self) -> int:
        """Among which sequences are divided: context groups, or processes."""
        return self.fabric.world_size // self._sharing

    @property
    def _sharing(self) -> int:
        return self.group.context.size if self.group else 1

    def _of(self, data: Batches, offset: int, samples: int) -> Iterator[Batch]:
        if self.pool:
            assert isinstance(self.shape, Shape)
            return shared(data.batch(range(offset, offset + samples), samples), self.pool, self.shape)
        own = self.fabric.global_rank // self._sharing
        batches = data.micro_batches(offset, samples, own, self.data_ranks, self.micro_batch_size)
        return (held(batch, self.group.context, self.group.place) if self.group else batch for batch in batches)

    @property
    def identity(self) -> dict[str, Any]:
        """What run.json holds."""
        sources = self.order.names
        length = self.plan.sequence_length
        return {
            "run_id": self.folder.name,
            "experiment": self.folder.parent.name,
            "overrides": self.config["launch"]["overrides"],
            "N": self.shape.N,
            "N_total": self.shape.N_total,
            "flops_per_token": self.shape.flops_per_token(length),
            "total_tokens": self.plan.total_tokens,
            "unique_tokens": sum(self.order.unique) * length,
            "tokens_before_repeat": self.order.samples_before_repeat * length,
            "train_tokens": sum(self.prepared.sources[name].n_tokens for name in sources),
            "sequence_length": length,
            "vocab_size": self.prepared.vocab_size,
            "unigram_loss": None if isinstance(self.shape, Regression) else self.prepared.unigram_loss,
            "data_fingerprint": self.prepared.fingerprint,
            "heldout_fingerprint": self.prepared.heldout_fingerprint,
            "tokenizer_fingerprint": self.prepared.tokenizer_fingerprint,
            "seed": self.config["seed"],
            "precision": self.config["precision"],
            "parent": self.config["parent"],
        }


def build_run(config: Mapping[str, Any], folder: Path) -> Run:
    """Opens the prepared data and builds plan, model and optimizer on this process's device.

    ValueError where they do not fit each other, or where the data was never prepared.
    """
    launch = config["launch"]
    cache = cache_folder(launch["cache"])
    prepared = open_prepared(config["data"], config["tokenizer"], cache)
    plan = plan_of(config)
    length = plan.sequence_length
    vocab_size = config["model"].get("vocab_size") or prepared.vocab_size
    shape: Shape | Regression = instantiate(config["model"], vocab_size=vocab_size)
    order = sample_order(prepared, length, config["seed"], config["unique_tokens"])

    strategy, optimizer = instantiate(launch["strategy"]), instantiate(config["optimizer"])
    timeout = timedelta(seconds=launch["collective_timeout"])
    fabric = build_fabric(strategy, launch["accelerator"], config["precision"], config["clip_norm"], timeout)
    model = build_model(config, shape, prepared)

    def build_optimizer(module: nn.Module) -> Any:
        return optimizer.build(module.named_parameters(), plan, shape.growth)

    context = Context.of(config["context"])
    group = build_groups(context, timeout) if context.size > 1 else None
    pool = build_pool(context.capacity, timeout) if context.capacity else None
    if pool:
        warn_once("no noise_scale with context.capacity: gradients of a rank are of parts of samples.")
    if isinstance(model, Transformer) and group:
        spread(model, group)
    if isinstance(model, Transformer) and pool:
        spread_over_pool(model, pool)
    engine = strategy.engine(fabric, model, build_optimizer, config["clip_norm"])
    averages = {name: instantiate(average) for name, average in (config["averages"] or {}).items()}
    keep = launch["checkpoint"]
    logger = instantiate(launch["logger"])
    return Run(
        config=config,
        folder=folder,
        fabric=fabric,
        strategy=strategy.name,
        plan=plan,
        shape=shape,
        prepared=prepared,
        order=order,
        group=group,
        pool=pool,
        train_data=Batches(prepared.sources, order, length, shape.document_mask),
        eval_data=held_out_batches(prepared, config["eval"]["tokens"], length, shape.document_mask),
        micro_batch_size=launch["micro_batch_size"]
        or -(-int(plan.segments.batch_size[0]) // (fabric.world_size // context.size)),
        engine=engine,
        averages=Averages(averages, engine, plan),
        noise=NoiseScale(plan.total_tokens / 20, fabric.device, group.every if group else None),
        guard=instantiate(config["spike_guard"]),
        telemetry=Telemetry(fabric, shape.flops_per_token(length), config["precision"]),
        checkpoints=Checkpoints(
            folder / "checkpoints", keep["keep"], keep["keep_every_tokens"], keep["marks"], timeout
        ),
        loggers=[logger.build(folder, folder.name, dict(config))] if logger and fabric.is_global_zero else [],
    )


def build_model(config: Mapping[str, Any], shape: Shape | Regression, prepared: Prepared) -> nn.Module:
    """The bare model at its start, before a strategy wraps it."""
    if isinstance(shape, Regression):
        (source,) = (instantiate(source) for source in config["data"]["sources"].values())
        return Replicas(source, shape)
    model = Transformer(shape, prepared.vocab_size)
    initialize(model, config["seed"])
    prepare_blocks(model, config["launch"]["activation_checkpointing"], config["launch"]["compile"])
    return model


def held_out_batches(
    prepared: Prepared, eval_tokens: int, length: int, with_documents: bool
) -> dict[str, tuple[Batches, int]]:
    """`eval_tokens` of the held-out set (or all it has), shared equally between the sources, at least a window each."""
    batches = {}
    for name, tokens in prepared.heldout.items():
        size = sample_count(tokens, length)
        count = max(1, min(eval_tokens // length // len(prepared.heldout), size))
        batches[name] = Batches({name: tokens}, EvenlySpaced(name, count, size), length, with_documents), count
    return batches
