"""How the blocks of a model are run: what is kept for the backward pass, and what is compiled.

    block(x) -> hooks of FSDP, ZeRO or DDP -> compiled -> checkpointed -> Block.forward

Applied to the bare model, before a strategy wraps it. Only `forward` is replaced, so the hooks with which a strategy
gathers and splits weights stay outside of the compiled and the recomputed region, where weights are plain tensors.

Every block runs one and the same function of (block, input). It is compiled once for all layers, once with gradients
and once without: micro-batches have one shape, so neither a batch ramp nor accumulation compiles again.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import train.context_parallel.ring  # noqa: F401  # it makes the operator
from train.loss import softmax_terms
from train.model import Block, Transformer

Rotary = tuple[Tensor, Tensor]
RunBlock = Callable[..., Tensor]

# every kernel that F.scaled_dot_product_attention may choose, and the ring: each returns what its backward needs, out
# and log-sum-exp (Selective Checkpoint++ of LoongTrain, arXiv:2406.18485)
ATTENTION = [
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_fused_attention_overrideable.default,
    torch.ops.fulcrum.ring_attention.default,
]
keep_attention = partial(create_selective_checkpoint_contexts, ATTENTION)


def plain(block: Block, x_BTD: Tensor, rotary: Rotary, mask: Tensor | None) -> Tensor:
    return Block.forward(block, x_BTD, rotary, mask)


def recompute_all(block: Block, x_BTD: Tensor, rotary: Rotary, mask: Tensor | None) -> Tensor:
    # no random draws within a block: no generator's state to keep
    return checkpoint(Block.forward, block, x_BTD, rotary, mask, use_reentrant=False, preserve_rng_state=False)


def recompute_but_attention(block: Block, x_BTD: Tensor, rotary: Rotary, mask: Tensor | None) -> Tensor:
    return checkpoint(
        Block.forward,
        block,
        x_BTD,
        rotary,
        mask,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=keep_attention,
    )


CHECKPOINTING: dict[str, RunBlock] = {"none": plain, "full": recompute_all, "selective": recompute_but_attention}


def prepare_blocks(model: Transformer, checkpointing: str, compile: bool) -> None:
    """Sets how each block of `model` runs, in place; `compile` compiles the softmax of the head's loss too.

    `checkpointing`: `none` keeps all that the backward pass needs, `full` keeps a block's input and recomputes the
    rest, `selective` keeps attention's output too, so that attention runs forward once. Numbers are the same, but for
    the rounding of compiled kernels. ValueError on another word.
    """
    if checkpointing not in CHECKPOINTING:
        raise ValueError(
            f"launch.activation_checkpointing={checkpointing} is not known: use one of {', '.join(CHECKPOINTING)}."
        )
    run = CHECKPOINTING[checkpointing]
    if compile:
        run = torch.compile(run, dynamic=False, fullgraph=True)
        model.head.terms = torch.compile(softmax_terms, dynamic=False, fullgraph=True)
    for block in model.blocks:
        block.forward = partial(run, block)
