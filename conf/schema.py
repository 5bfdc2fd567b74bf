"""Every field of a configuration, with its type, unit and default. Hydra refuses what is not here.

`launch`, `context`, `slurm` and `dry_run` are how a point is run; everything else is what it is (its identity). A field
that is null is left out of the identity, so fields added later default to null and old run ids stay. Tokens may be
written 2e6.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf


@dataclass
class Eval:
    """Evaluation on the held-out set."""

    tokens: float = 65536
    """held-out tokens that are evaluated, the same ones each time"""
    every_tokens: float | None = None
    """training tokens between evaluations; null: a fifth of the budget. The end is always evaluated"""
    growth: float | None = None
    """evaluations come at every_tokens times the powers of this instead; null: at its multiples"""


@dataclass
class StopWhen:
    """Ends a run at an evaluation before its budget; the summary's stop_reason says `target` or `hopeless`."""

    loss: float | None = None
    """a held-out loss, of the weights or any average of them, at or below this ends the run; null or 0: none does"""
    rivals: list[str] | None = None
    """keys, as [peak_lr]: runs that differ in these alone race for the loss"""
    beaten_by: float = 1.25
    """a run ends when it has spent this many times the tokens on which a rival reached the loss"""


@dataclass
class Checkpoint:
    every_tokens: float | None = None
    """training tokens between checkpoints; null: an eighth of the budget. The end is always kept"""
    every_minutes: float | None = 15.0
    """and as soon as this time has passed since the last one; null: by tokens alone"""
    keep: int = 2
    """newest checkpoints that are kept"""
    keep_every_tokens: float | None = None
    """the first checkpoint of every so many tokens is kept for good; null: none"""
    marks: list[float] = field(default_factory=list)
    """tokens at which a checkpoint is kept for good, rounded down to the end of a step; branches add theirs"""


@dataclass
class Parent:
    """The run that a branch starts from: the branch's own overrides, without `parent`, and `overrides` behind them."""

    tokens: float | None = None
    """tokens of the parent after which the branch goes on, rounded down to the end of a step; null: no branch"""
    overrides: list[str] = field(default_factory=list)
    """what the parent does differently, as [schedule=constant,total_tokens=4e6]"""


@dataclass
class Machine:
    """What a dry run compares layouts of context parallelism by; `benchmarks/context_parallel.py` measures it."""

    ranks_per_node: int | None = None
    """null: launch.devices / slurm.nodes"""
    node_bandwidth: float | None = None
    """bytes per second that one rank sends to ranks of its node"""
    network_bandwidth: float | None = None
    """bytes per second that one rank sends to other nodes, while the others of its node do so too"""
    latency: float | None = None
    """seconds that a message takes beside its bytes"""
    flops: float | None = None
    """FLOP/s that attention reaches, its forward pass counted as two products of the visible half of a square"""


@dataclass
class Context:
    """Context parallelism: the tokens of a sequence over ranks, as head_parallel x ring of launch.devices."""

    head_parallel: int = 1
    """ranks that exchange slices of the sequence for heads (Ulysses); it divides the query heads"""
    ring: int = 1
    """ranks among which keys and values travel"""
    window: int | None = None
    """ranks of an inner ring (Double-Ring), a divisor of ring; null: one ring of all"""
    placement: str = "head_first"
    """which ranks are neighbours: head_first, those that exchange heads; context_first, those of a ring"""
    capacity: int | None = None
    """hybrid data parallelism instead: all ranks are one pool, a rank's micro-batch has at most so many tokens, and
    documents are spread over as many ranks as they need; null: sequences are shared as above"""
    machine: Machine = field(default_factory=Machine)
    """for a dry run alone, which then compares the layouts of as many ranks"""


@dataclass
class Search:
    """Goes on beyond the points that were asked for until the best of them has neighbours on all sides."""

    over: list[str] = field(default_factory=list)
    """keys that are searched, each swept over at least one number; none: no search"""
    factor: float = 2.0
    """between neighbours"""
    most: int = 9
    """values, or combinations of values, that are tried in all"""


@dataclass
class Launch:
    """How points are run; not part of what a run is."""

    runs: str = "runs"
    """folder of all experiments: records lie in <runs>/<experiment>/<run_id>"""
    experiment: str | None = None
    """name of the experiment's folder; null: the name of the chosen `experiment`, or "default" """
    report: list[str] = field(default_factory=lambda: ["chinchilla"])
    """sections that this experiment's report shows"""
    cache: str | None = None
    """where prepared data lies; null: $FULCRUM_CACHE or the user's cache folder"""
    accelerator: str = "auto"
    """auto, cpu or cuda"""
    devices: int = 1
    """processes of one point, one per device; on Slurm they are spread over slurm.nodes"""
    micro_batch_size: int | None = None
    """sequences per forward pass of a device, or of the devices that share them (context.*); null: its whole share of
    the first batch"""
    compile: bool = False
    """compile the model's blocks, once for all of them (torch.compile); no ramp compiles them again"""
    activation_checkpointing: str = "none"
    """what the backward pass computes again to save memory: none, full, or selective (all but attention)"""
    collective_timeout: float = 600.0
    """seconds that a process waits for the others before it gives up"""
    tokens_per_second: float | None = None
    """measured speed of one point, for the hours that a dry run expects; null: from records of the same shape"""
    parallel: int | None = None
    """points that train at once; null: on CPU one per core, at most as many as there are points; on CUDA one"""
    threads: int | None = None
    """CPU threads per process; null: cores / (parallel * devices)"""
    search: Search = field(default_factory=Search)
    rivals: str | None = None
    """what the runs that race for one loss have in common (stop_when.rivals); written by the launcher"""
    retry: str | None = None
    """`diverged` runs such points again, from the start"""
    log_every_tokens: float | None = None
    """training tokens between rows of metrics.jsonl; null: 1/200 of the budget"""
    verify_data: bool = True
    """compare the prepared data with its checksums before a sweep starts"""
    strategy: dict[str, Any] = MISSING
    """how a model lies on several devices: group `strategy`"""
    logger: Any = None
    """what logs beside the record: group `logger`"""
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    overrides: list[str] = field(default_factory=list)
    """how the point was asked for; written by the launcher"""


@dataclass
class Config:
    points: str | None = None
    """a YAML file with a list of override lists: each is a point, on top of the other overrides"""
    label: str | None = None
    """separates runs that are otherwise equal"""
    seed: int = 0
    """of initialisation and sample order"""
    precision: str = "float32"
    """float32, or bf16 (bf16 compute, float32 weights, accumulation and reduction)"""
    total_tokens: float = MISSING
    """budget D in tokens, rounded down to whole sequences"""
    sequence_length: int = 256
    """tokens per sequence"""
    unique_tokens: float | None = None
    """train on this many tokens of the data, repeated; null: all there are"""
    peak_lr: float = MISSING
    """learning rate at the end of warm-up"""
    warmup_tokens: float | None = None
    """tokens over which the rate rises linearly; null: 5 % of the budget"""
    warmup_start: float = 0.0
    """multiplier of the peak rate at token 0"""
    clip_norm: float = 1.0
    """largest norm of the whole gradient; 0: no clipping"""
    z_loss: float = 0.0
    """coefficient of mean (log Z)^2, added to the loss that is trained on, never to the one that is reported"""
    parent: Parent | None = field(default_factory=Parent)
    """the run whose weights, optimizer and clock this one goes on with; the record names it by its run_id"""
    dry_run: bool = False
    """validate all points and show what each would train, start nothing and write nothing; not part of the identity"""
    vars: dict[str, Any] = field(default_factory=dict)
    """values of your own for interpolations, as ${mul:${vars.ratio},${model.d_model}}; not part of the identity"""
    data: dict[str, Any] = MISSING
    tokenizer: dict[str, Any] = MISSING
    model: dict[str, Any] = MISSING
    optimizer: dict[str, Any] = MISSING
    spike_guard: Any = None
    """skips updates whose loss or gradient stands out: group `spike_guard`; null: none"""
    schedule: dict[str, Any] = MISSING
    ramp: dict[str, Any] = MISSING
    averages: dict[str, Any] | None = field(default_factory=dict)
    """averages of the weights by name, each evaluated as eval_loss_<name>: group `averages`, or
    +averages.tail={_target_:optim.averaging.Tail,start:0.8}"""
    eval: Eval = field(default_factory=Eval)
    stop_when: StopWhen | None = field(default_factory=StopWhen)
    """what ends the run before its budget; of no use to laws of final losses, which leave such runs out"""
    slurm: dict[str, Any] = MISSING
    """what a point's job asks of Slurm, or `slurm=local`: group `slurm`; not part of the identity"""
    context: Context = field(default_factory=Context)
    """how a sequence lies on several devices; not part of the identity"""
    launch: Launch = field(default_factory=Launch)


@dataclass
class PlanConfig(Config):
    """`fulcrum plan`: a point, and how its plan is shown."""

    format: str = "table"
    """table, or json"""
    records: str | None = None
    """folder of runs of the same model size: their measured speeds tell the seconds that a ramp saves"""
    out: str | None = None
    """file of the picture: .svg, .pdf, .png or .html"""


@dataclass
class Problem:
    """Linear regression on a power law: eigenvalues i^-a, and a risk of i^-b in direction i at the start."""

    dimension: int = 1000
    """eigenvalues"""
    a: float = 1.5
    """capacity: how fast eigenvalues fall, above 1"""
    b: float = 2.0
    """source: how fast the risk in their directions falls, above 1"""
    noise_variance: float = 0.1
    """of the answers"""


@dataclass
class TheoryConfig(Config):
    """`fulcrum theory`: a point whose plan is followed on a problem with known risk."""

    problem: Problem = field(default_factory=Problem)
    """what is learned"""
    algorithms: list[str] = field(default_factory=lambda: ["sgd"])
    """sgd, normalized_sgd (a stand-in for Adam), gd (the whole population a step)"""
    compare: list[int] = field(default_factory=list)
    """numbers of rows on which gradient descent, ridge and one-pass SGD are compared, each tuned"""
    format: str = "table"
    """table, or json"""
    out: str | None = None
    """file of the picture: .svg, .pdf, .png or .html"""


def _number(value: float) -> float | int:
    return int(value) if value.is_integer() else value


# arithmetic in YAML: total_tokens: ${mul:20,${vars.parameters}}
OmegaConf.register_new_resolver("mul", lambda *factors: math.prod(float(f) for f in factors), replace=True)
OmegaConf.register_new_resolver("add", lambda *terms: sum(float(t) for t in terms), replace=True)
OmegaConf.register_new_resolver("pow", lambda a, b: float(a) ** float(b), replace=True)
OmegaConf.register_new_resolver("min", lambda *terms: _number(min(float(t) for t in terms)), replace=True)
OmegaConf.register_new_resolver("div", lambda a, b: float(a) / float(b), replace=True)

ConfigStore.instance().store(name="schema", node=Config)
ConfigStore.instance().store(name="plan_schema", node=PlanConfig)
ConfigStore.instance().store(name="theory_schema", node=TheoryConfig)


def tokens_for(flops: float, *, _root_: Any) -> float:
    """The tokens on which training the configured model costs `flops`, exact for its shape and sequences."""
    from hydra.utils import instantiate

    from data.tokenizers import vocab_size_of

    plain: dict[str, Any] = {key: OmegaConf.to_container(_root_[key], resolve=True) for key in ("model", "tokenizer")}
    shape = instantiate(plain["model"], vocab_size=plain["model"]["vocab_size"] or vocab_size_of(plain["tokenizer"]))
    return float(flops) / float(shape.flops_per_token(_root_["sequence_length"]))


OmegaConf.register_new_resolver("tokens_for", tokens_for, replace=True)
