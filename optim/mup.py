"""muP: how the rates of a wider model follow from those of a base model, so that one peak rate serves all. No torch.

    Growth (how much wider) x Exponents (of the rule) -- rate_factor --> what the plan's rate is multiplied by

The form is that of Tensor Programs V (Yang et al. 2022, arXiv:2203.03466, table 8). With m = width / base width:
hidden matrices are N(0, 1/fan_in), embedding and head are drawn as at the base width, logits are divided by m, and
attention scores by the size of a head instead of its root. Then the gradients of activations fall as 1/m, and a step
shall change each activation by as much at every width. What a rule's update is decides its rate:

    rule                      hidden     others    an update's size
    AdamW, Lion               1/m        1         entries of 1: a hidden sum has m times as many, and they agree
    SGD, normalized SGD       1          m         entries of 1/m; the norm of the whole gradient does not grow
    normalized SGD, tensor    1          sqrt(m)   entries of 1/sqrt(n), n of them: m^2 times as many, or m times
    Muon, Shampoo             1          AdamW's   singular values of 1, the size wanted (arXiv:2310.17813)
      match_rms_adamw, SWAN   1/sqrt(m)  AdamW's   singular values that grow as sqrt(m)

Others are embedding, head and gains. The lines of Adam and SGD are the table's; the rest is derived here from the same
conditions. SWAN's wants gradients of full rank: more tokens in a batch than the width. SOAP has no line: its first
updates have singular values of 1, later ones entries of 1, and no one factor serves both.

All widths grow together: `d_ff`, `n_heads * head_dim` and `n_kv_heads * head_dim` as `d_model`. Depth is not scaled.
Weight decay stays: a step shrinks a matrix by rate * lambda at every width, rate being the plan's. Adam's eps stays
too: gradients fall as 1/m, so give a smaller one where they come near it.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Growth(NamedTuple):
    """How many times wider a model is than its base model; 1 is the standard parametrization."""

    width: float = 1.0
    """m: d_model over the base model's"""
    head: float = 1.0
    """size of a head over the base model's"""


class Exponents(NamedTuple):
    """Powers of m in the rate of a rule's parameters."""

    hidden: float
    """2-D weights between activations"""
    others: float
    """embedding, output head and gains; for a gain of a head's size m is that of the head"""


ADAM = Exponents(-1, 0)


def is_hidden(name: str, shape: Sequence[int]) -> bool:
    """A 2-D weight that is neither embedding nor output head, whose rows are tokens and not directions."""
    return len(shape) == 2 and name.split(".")[0] not in _TOKEN_TABLES


_TOKEN_TABLES = ("embedding", "head")


def rate_factor(exponents: Exponents, growth: Growth, name: str, shape: Sequence[int]) -> float:
    """What the plan's rate is multiplied by for the parameter of this name and shape; 1 at the base width."""
    if is_hidden(name, shape):
        return growth.width**exponents.hidden
    of_a_head = name.endswith(("q_norm.weight", "k_norm.weight"))
    return (growth.head if of_a_head else growth.width) ** exponents.others
