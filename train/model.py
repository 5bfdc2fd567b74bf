"""The model: a decoder-only transformer.

    tokens -> embedding -> [x + attention(norm(x)); x + mlp(norm(x))] * n_layers -> norm -> head -> logits, or the loss

RMSNorm without bias, rotary positions, grouped queries, QK-norm as an option, SwiGLU or GELU, tied or untied head,
causal attention, within documents when their ids are given. The loss is computed inside, so that what gathers a split
weight for its module's call (FSDP, ZeRO-3) gathers the head's. Parallel forms are applied from outside.
Under muP (`optim.mup`) the logits of a model m times as wide as its base are divided by m, and the scores of heads that
are g times as large by sqrt(g) more.

Under bf16 the residual stream and the matrix products are bf16; norms, rotary embedding, softmax and loss are float32.
A gain is rounded as a matrix is, so float32 weights under autocast and bf16 weights are one and the same function.

Shape suffixes: B batch, T positions, D width, V padded vocabulary, H query heads, G key/value heads, K size of a head.
"""

import hashlib
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.loss import Terms, linear_cross_entropy, softmax_terms
from train.shape import Shape


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of matrix products with `weight`: autocast's where it is on, else the weight's own."""
    device = weight.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if autocast else weight.dtype


class RMSNorm(nn.Module):
    """x / rms(x) * gain over the last dimension, in float32; the gain is rounded to the dtype of x first."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.type_as(x).float(), 1e-6).type_as(x)


def rotary_table(shape: Shape, positions_T: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, each float32 [T, K/2], of the rotation of every pair of a head's coordinates at each position."""
    pairs = torch.arange(0, shape.d_head, 2, dtype=torch.float32, device=positions_T.device)
    angles = positions_T.float()[:, None] * shape.rope_base ** (-pairs / shape.d_head)
    return angles.cos(), angles.sin()


def rotate(x_BTHK: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Turns coordinate pairs (i, i + K/2) of each head by their position's angle, in float32."""
    a, b = x_BTHK.float().chunk(2, dim=-1)
    cos, sin = cos_TR[:, None, :], sin_TR[:, None, :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).type_as(x_BTHK)


Attend = Callable[[Tensor, Tensor, Tensor, Any, float | None], Tensor]


def attend(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, mask_B1TT: Tensor | None, scale: float | None) -> Tensor:
    """Attention (B, T, H, K), causal where there is no mask. `scale` None: 1 / sqrt(K)."""
    return F.scaled_dot_product_attention(
        q_BTHK.transpose(1, 2),
        k_BTGK.transpose(1, 2),
        v_BTGK.transpose(1, 2),
        attn_mask=mask_B1TT,
        is_causal=mask_B1TT is None,
        scale=scale,
        enable_gqa=k_BTGK.shape[2] != q_BTHK.shape[2],
    ).transpose(1, 2)


def document_mask(documents_BT: Tensor) -> Tensor:
    """(B, 1, T, T): which positions each sees, those of its document up to its own."""
    return (documents_BT[:, :, None] == documents_BT[:, None, :]).tril()[:, None]


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.attend: Attend = attend
        self.q = nn.Linear(shape.d_model, shape.n_heads * shape.d_head, bias=False)
        self.k = nn.Linear(shape.d_model, shape.kv_heads * shape.d_head, bias=False)
        self.v = nn.Linear(shape.d_model, shape.kv_heads * shape.d_head, bias=False)
        self.out = nn.Linear(shape.n_heads * shape.d_head, shape.d_model, bias=False)
        growth = shape.growth.head
        self.scale = None if growth == 1 else 1 / math.sqrt(shape.d_head * growth)  # None: 1 / sqrt(d_head)
        if shape.qk_norm:
            self.q_norm, self.k_norm = RMSNorm(shape.d_head), RMSNorm(shape.d_head)

    def forward(self, x_BTD: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        B, T, _ = x_BTD.shape
        q_BTHK = self.q(x_BTD).view(B, T, self.shape.n_heads, -1)
        k_BTGK = self.k(x_BTD).view(B, T, self.shape.kv_heads, -1)
        v_BTGK = self.v(x_BTD).view(B, T, self.shape.kv_heads, -1)
        if self.shape.qk_norm:
            q_BTHK, k_BTGK = self.q_norm(q_BTHK), self.k_norm(k_BTGK)
        q_BTHK, k_BTGK = rotate(q_BTHK, *rotary), rotate(k_BTGK, *rotary)
        return self.out(self.attend(q_BTHK, k_BTGK, v_BTGK, mask, self.scale).reshape(B, T, -1))


class MLP(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate = nn.Linear(shape.d_model, shape.d_ff, bias=False) if shape.mlp == "swiglu" else None
        self.up = nn.Linear(shape.d_model, shape.d_ff, bias=False)
        self.down = nn.Linear(shape.d_ff, shape.d_model, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        up = self.up(x_BTD)
        return self.down(F.gelu(up, approximate="tanh") if self.gate is None else F.silu(self.gate(x_BTD)) * up)


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm, self.attention = RMSNorm(shape.d_model), Attention(shape)
        self.mlp_norm, self.mlp = RMSNorm(shape.d_model), MLP(shape)

    def forward(self, x_BTD: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotary, mask)
        return x_BTD + self.mlp(self.mlp_norm(x_BTD))


class Head(nn.Module):
    """Logits or, with targets, the summed loss without ever all logits. Ids of the padding are never predicted."""

    def __init__(self, shape: Shape, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size, self.growth = vocab_size, shape.growth.width
        self.weight: Tensor = nn.Parameter(torch.empty(shape.vocab, shape.d_model))
        self.terms: Terms = softmax_terms

    def forward(
        self, x_BTD: Tensor, targets_BT: Tensor | None = None, z_loss: float = 0.0
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        if self.growth != 1:
            x_BTD = x_BTD / self.growth
        if targets_BT is not None:
            x_ND, targets_N = x_BTD.flatten(0, 1), targets_BT.flatten()
            return linear_cross_entropy(x_ND, self.weight, targets_N, self.vocab_size, z_loss, terms=self.terms)
        logits_BTV = F.linear(x_BTD, self.weight)
        if self.vocab_size < len(self.weight):
            logits_BTV[..., self.vocab_size :] = -torch.inf
        return logits_BTV


class Transformer(nn.Module):
    def __init__(self, shape: Shape, vocab_size: int) -> None:
        super().__init__()
        self.shape, self.vocab_size = shape, vocab_size
        self.mask: Callable[[Any], Any] = document_mask
        self.embedding = nn.Embedding(shape.vocab, shape.d_model)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.n_layers))
        self.norm = RMSNorm(shape.d_model)
        self.head = Head(shape, vocab_size)
        if shape.tied:
            self.head.weight = self.embedding.weight

    def forward(
        self,
        tokens_BT: Tensor,
        documents_BT: Any = None,
        targets_BT: Tensor | None = None,
        z_loss: float = 0.0,
        positions_T: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Logits [B, T, V] of the next token, -inf from `vocab_size` on; with targets (objective, loss, z) instead.

        These are float32 scalars, sums over positions whose target is not `IGNORED`: loss is the cross-entropy in nats,
        z is (log Z)^2 (0 where `z_loss` is 0), and objective = loss + z_loss * z is the one to differentiate.
        `documents_BT`: document number of each position; attention then stays within a document. `positions_T`: where
        in the sequence the tokens stand; None: all of it, in order.

        Context parallelism puts others in place of `mask` and of every block's `attend`; what they take as documents is
        theirs to say.
        """
        if positions_T is None:
            positions_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        rotary = rotary_table(self.shape, positions_T)
        mask = None if documents_BT is None else self.mask(documents_BT)
        x_BTD = self.embedding(tokens_BT).to(compute_dtype(self.embedding.weight))
        for block in self.blocks:
            x_BTD = block(x_BTD, rotary, mask)
        return self.head(self.norm(x_BTD), targets_BT, z_loss)


def initialize(model: Transformer, seed: int) -> None:
    """Draws each parameter from a generator of its own, seeded by (seed, its name): the same on every layout.

    Matrices N(0, 1/fan_in), those that write to the residual stream divided by sqrt(2 n_layers); the embedding N(0, 1)
    (a token is one of its rows, so its fan-in is 1) unless the head shares it; gains 1. Under muP
    the head is drawn as at the base width.
    """
    shape = model.shape
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            nn.init.ones_(parameter)
            continue
        std = 1 / math.sqrt(parameter.shape[1])
        if name.endswith(("attention.out.weight", "mlp.down.weight")):
            std /= math.sqrt(2 * shape.n_layers)
        elif name == "embedding.weight" and not shape.tied:
            std = 1.0
        elif name in ("embedding.weight", "head.weight"):
            std *= math.sqrt(shape.growth.width)
        digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
