"""Memory of one rank, in bytes, from the shape of the model and how it is trained; no torch.

    shape, optimizer's groups, strategy, ranks, micro-batch, precision -> Memory(weights, gradients, ...)

n parameters, R ranks that share what is split, c bytes of a number that is computed with (float32 4, bf16 2). Sizes of
tensors, without what the allocator rounds up, workspaces of kernels and the device's own context.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import prod

from optim.groups import Group, Shapes
from train.shape import Shape

STRATEGIES = ("single", "ddp", "fsdp", "zero1", "zero2", "zero3", "zero3_offload_cpu", "zero3_offload_nvme")
CHECKPOINTING = ("none", "full", "selective")
CHUNK_ELEMENTS = 2**26  # of logits at a time; train.loss has the same number, a test holds them together
BUCKET = 500_000_000  # elements of DeepSpeed's reduction buffer, allocated whole
LIVE = 1_000_000_000  # parameters that ZeRO 3 keeps gathered


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank. All but `host` and `disk` lie on the device."""

    weights: float
    """what is kept between steps"""
    gathered: float
    """weights, and gradients before they are split, that are whole for a while"""
    gradients: float
    """of an accumulated step"""
    optimizer: float
    averages: float
    activations: float
    """what one micro-batch keeps for its backward pass"""
    temporary: float
    """the head's logits and its weight's gradient while they are made, or, if that is more, a block computed again"""
    buffers: float
    """of the strategy"""
    host: float = 0.0
    """offloaded to the CPU's memory"""
    disk: float = 0.0
    """offloaded to a disk"""

    @property
    def device(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self) if field.name not in ("host", "disk"))


def per_rank(
    shape: Shape,
    state_bytes: float,
    strategy: str,
    world_size: int,
    micro_batch_size: int,
    sequence_length: int,
    precision: str = "float32",
    checkpointing: str = "none",
    averages: int = 0,
    replicas: int = 1,
) -> Memory:
    """Of a strategy by its name in `STRATEGIES`; `state_bytes` as `optimizer_bytes` gives them, for the whole model.

    - single, ddp: weights 4n, and under autocast those of the blocks again in bf16 (not with checkpointing: each block
      casts its own again); gradients 4n; optimizer, averages.
    - fsdp: weights, gradients, optimizer and averages over R = world_size / replicas; gathered: the root's weights
      (embedding, last norm, head) and two blocks' at c each, and the larger one's gradient at 4.
    - zero1, zero2: weights c n and their float32 master 4n / R; gradients 4n, in stage 2 4n / R; the rest over R.
    - zero3: weights (c + 4) n / R; gathered c n, at most 10^9 parameters; the rest over R. Offloaded, master, weights,
      optimizer, averages and gradients lie on the host; to a disk, weights, master and optimizer do.
    - zero*: DeepSpeed's reduction buffer, 5 10^8 elements at c, at 4 in stage 1.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy={strategy} is unknown: use one of {', '.join(STRATEGIES)}.")
    n, c = shape.N_total, number_bytes(precision)
    R = world_size // replicas
    copies = 4.0 * n * averages
    batch = (micro_batch_size, sequence_length, precision)
    again = recomputed_bytes(shape, *batch) if checkpointing != "none" else 0
    parts = {
        "activations": activation_bytes(shape, *batch, checkpointing),
        "temporary": max(logits_bytes(shape, micro_batch_size * sequence_length, precision), again),
    }
    if strategy in ("single", "ddp"):
        cast = 2 * shape.n_layers * block_parameters(shape) if precision == "bf16" and checkpointing == "none" else 0
        return Memory(4 * n + cast, 0, 4 * n, state_bytes, copies, buffers=0, **parts)
    block = block_parameters(shape)
    if strategy == "fsdp":
        root = n - shape.n_layers * block
        gathered = c * (root + 2 * block) + 4 * max(root, block)
        return Memory(4 * n / R, gathered, 4 * n / R, state_bytes / R, copies / R, buffers=0, **parts)
    bucket = min(BUCKET, n) * (4 if strategy == "zero1" else c)
    if strategy in ("zero1", "zero2"):
        gradients = 4 * n if strategy == "zero1" else 4 * n / R
        return Memory(c * n + 4 * n / R, 0, gradients, state_bytes / R, copies / R, buffers=bucket, **parts)
    gathered, state, copies = c * min(n, LIVE), state_bytes / R, copies / R
    weights, gradients = (c + 4) * n / R, 4 * n / R
    if strategy == "zero3":
        return Memory(weights, gathered, gradients, state, copies, buffers=bucket, **parts)
    on_disk = weights + state if strategy == "zero3_offload_nvme" else 0.0
    on_host = weights + state + gradients + copies - on_disk
    return Memory(0, gathered, 0, 0, 0, buffers=bucket, host=on_host, disk=on_disk, **parts)


def optimizer_bytes(shapes: Shapes, groups: Sequence[Group], momentum: float = 0.0) -> int:
    """float32 state of all parameters, by the rule that updates them; a matrix has r rows and k columns.

    AdamW 2rk and a counter; Lion and Muon rk; SGD rk with momentum, else 0; Shampoo rk + 2(r^2 + k^2); SOAP
    2rk + 2(r^2 + k^2); SWAN and NormalizedSGD 0.
    """
    elements = 0
    for group in groups:
        for name in group.names:
            size = prod(shapes[name])
            squares = sum(side**2 for side in shapes[name])
            elements += {
                "AdamW": 2 * size + 1,
                "Lion": size,
                "Muon": size,
                "SGD": size if momentum else 0,
                "Shampoo": size + 2 * squares,
                "SOAP": 2 * size + 2 * squares,
                "SWAN": 0,
                "NormalizedSGD": 0,
            }[group.optimizer]
    return 4 * elements


def block_parameters(shape: Shape) -> int:
    """Elements of one block's parameters."""
    return sum(prod(size) for name, size in shape.parameters().items() if name.startswith("blocks.0."))


def activation_bytes(
    shape: Shape, rows: int, sequence_length: int, precision: str = "float32", checkpointing: str = "none"
) -> int:
    """What one micro-batch of `rows` sequences keeps from forward to backward, logits apart.

    A block keeps `block_bytes`; with checkpointing `full` its input, cD per token, with `selective` attention's output
    too, c(D + q) + 4H. The last norm keeps 2 * 4D + 4, the loss its gradient cD, the embedding the token's id, 8.
    """
    if checkpointing not in CHECKPOINTING:
        raise ValueError(f"launch.activation_checkpointing={checkpointing}: use one of {', '.join(CHECKPOINTING)}.")
    c, D, H = number_bytes(precision), shape.d_model, shape.n_heads
    tokens = rows * sequence_length
    kept = {
        "none": block_bytes(shape, rows, sequence_length, precision),
        "full": tokens * c * D,
        "selective": tokens * (c * (D + H * shape.d_head) + 4 * H),
    }[checkpointing]
    return shape.n_layers * kept + tokens * (2 * 4 * D + 4 + c * D + 8)


def block_bytes(shape: Shape, rows: int, sequence_length: int, precision: str = "float32") -> int:
    """What one block keeps for its backward pass of `rows` sequences, without checkpointing.

    Per token, with D width, F hidden width, q and k sizes of all query and all key/value heads, H and G their counts:

        norms      2 (2 * 4D + 4): input and normalised input in float32 (fused kernels keep the first), 1 / rms
        attention  c (D + 2q + 2k) + 4H: the norm's output, queries, keys, values, output; its log-sum-exp
        QK-norm    2 * 4 (q + k) + 4 (H + G)
        MLP        c (D + 4F), or c (D + 2F) for gelu

    and c T per token, T^2 per sequence, for a document mask.
    """
    c, D, F, H, G = number_bytes(precision), shape.d_model, shape.d_ff, shape.n_heads, shape.kv_heads
    q, k = H * shape.d_head, G * shape.d_head
    token = 2 * (2 * 4 * D + 4) + c * (2 * D + 2 * q + 2 * k) + 4 * H + c * F * (4 if shape.mlp == "swiglu" else 2)
    if shape.qk_norm:
        token += 2 * 4 * (q + k) + 4 * (H + G)
    if shape.document_mask:
        token += c * sequence_length
    return rows * sequence_length * token


def recomputed_bytes(shape: Shape, rows: int, sequence_length: int, precision: str) -> int:
    """One block computed again: all it keeps, its weights in bf16 (2 each), and its hidden layer's gradient, cF."""
    cast = 2 * block_parameters(shape) if precision == "bf16" else 0
    hidden = rows * sequence_length * number_bytes(precision) * shape.d_ff
    return block_bytes(shape, rows, sequence_length, precision) + cast + hidden


def number_bytes(precision: str) -> int:
    """c: of a number that is computed with."""
    return 2 if precision == "bf16" else 4


def logits_bytes(shape: Shape, positions: int, precision: str = "float32") -> int:
    """The largest of three moments of the head, with r rows in a chunk of logits and V x D weights.

        softmax   4rV, in bf16 2rV more for the gradient of the products
        products  crV and the gradient of the weight 4VD, in bf16 2VD more; before both, 2VD of the weight in bf16
        backward  8VD, the weight's gradient times that of the loss

    From the second chunk on the sum of the weight's gradients, 4VD, is beside the first two.
    """
    V, D, c, low = shape.vocab, shape.d_model, number_bytes(precision), 2 if precision == "bf16" else 0
    chunks = -(-positions // max(1, CHUNK_ELEMENTS // V))
    rows = -(-positions // chunks)
    before = low * V * D + (4 * V * D if chunks > 1 else 0)
    return max(before + rows * V * (4 + low), before + rows * V * c + V * D * (4 + low), 8 * V * D)
