"""Laws of mixtures of experts and of sparse models: by experts, by sparsity, by granularity.

They disagree on what N counts, so a table serves one of them at a time: active parameters in JointMoE and DenseSparse,
total parameters in MoESparsity and FineGrainedMoE.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scaling import jets
from scaling.laws.law import Column, Law, Parameter, Reference
from scaling.laws.routed import Shifted, at_least_one_expert, effective_experts, expert_count, saturation
from scaling.laws.terms import coefficient, exponent, floor


def below_one(table: Mapping[str, Any]) -> None:
    """ValueError where nothing of a model is active."""
    most = float(np.max(np.asarray(table["S"], float)))
    if most >= 1:
        raise ValueError(f"S = {most:g} leaves no active parameter: S is the inactive share, (E - K) / E, below 1.")


@dataclass(frozen=True)
class JointMoE(Law):
    """L(N, D, E) = a Eh^delta N^(alpha + gamma ln Eh) + b Eh^omega D^(beta + zeta ln Eh) + c.

    N is the number of active parameters, D of training tokens, E of experts, which saturate to Eh as in
    `scaling.laws.routed`. Exponents carry their sign: alpha and beta are negative. Units of N shift delta and those of
    D shift omega. Source: Ludziejewski et al. 2025 (arXiv:2502.05172), the joint law; its shape is known from
    secondary material, its coefficients from nowhere, so there are no references to start from.

    Eleven parameters: E has to run from 1 to beyond E_max, at several N and D, before all of them mean anything.
    """

    name = "Joint MoE"
    formula = (
        "L(N, D, E) = a Eh^delta N^(alpha + gamma ln Eh) + b Eh^omega D^(beta + zeta ln Eh) + c, "
        "1 / Eh = 1 / (E - 1 + 1 / (1/E_start - 1/E_max)) + 1 / E_max"
    )
    source = "Ludziejewski et al. 2025, arXiv:2502.05172"
    inputs = (
        Column("N", "active parameters", ("a", "alpha", "gamma")),
        Column("D", "training tokens", ("b", "beta", "zeta")),
        expert_count(),
    )
    parameters = (
        coefficient("a", "size of the term in model size", {"loss": 1, "N": lambda p: -p["alpha"]}),
        exponent("alpha", "exponent of active parameters at Eh = 1", (-5.0, 0.0), (-1.0, -0.02)),
        Parameter("gamma", "identity", (-2.0, 2.0), (-0.05, 0.1), "change of alpha with ln Eh"),
        Shifted(
            "delta", "identity", (-5.0, 5.0), (-0.5, 0.2), "exponent of experts in the term of size, at N = 1",
            {"N": lambda p: -p["gamma"]},
        ),
        coefficient("b", "size of the term in data", {"loss": 1, "D": lambda p: -p["beta"]}),
        exponent("beta", "exponent of data at Eh = 1", (-5.0, 0.0), (-1.0, -0.02)),
        Parameter("zeta", "identity", (-2.0, 2.0), (-0.1, 0.1), "change of beta with ln Eh"),
        Shifted(
            "omega", "identity", (-5.0, 5.0), (-0.3, 0.5), "exponent of experts in the term of data, at D = 1",
            {"D": lambda p: -p["zeta"]},
        ),
        floor("c"),
        *saturation(),
    )  # fmt: skip
    linear = ("a", "b", "c")

    def predict(self, p: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
        """The loss at `columns` N (active parameters), D (tokens) and E (experts)."""
        experts = jets.log(effective_experts(p, columns["E"]))
        size, data = np.log(columns["N"]), np.log(columns["D"])
        in_size = jets.exp(experts * p["delta"] + (experts * p["gamma"] + p["alpha"]) * size)
        in_data = jets.exp(experts * p["omega"] + (experts * p["zeta"] + p["beta"]) * data)
        return p["a"] * in_size + p["b"] * in_data + p["c"]

    def check(self, table: Mapping[str, Any]) -> None:
        """ValueError where a row has fewer than one expert."""
        at_least_one_expert(table)


@dataclass(frozen=True)
class MoESparsity(Law):
    """L(N, D, S) = a / N^alpha + b / D^beta + c / (1 - S)^lambda + d / ((1 - S)^delta N^gamma) + e.

    N is the total number of parameters, D of training tokens, and S = (E - K) / E the share of E experts that stays
    inactive when K are active. Source: Abnar et al. 2025 (arXiv:2501.12370), equation 6. lambda may have either sign;
    near zero the floor e and the term c cannot be told apart. At the published values, 180 runs and 0.5 % of noise
    they cannot either, and most starts end elsewhere: fix e, or give it a prior. At S = 0.98, held out from the
    published fit, the published law explains 68 % of the variance only: do not extrapolate it in S.
    """

    name = "MoE sparsity"
    formula = "L(N, D, S) = a / N^alpha + b / D^beta + c / (1 - S)^lambda + d / ((1 - S)^delta N^gamma) + e"
    source = "Abnar et al. 2025, arXiv:2501.12370, equation 6"
    inputs = (
        Column("N", "total parameters", ("a", "alpha", "gamma")),
        Column("D", "training tokens", ("b", "beta")),
        Column("S", "share of experts that is inactive, below 1", ("c", "lambda", "d", "delta"), "fraction"),
    )
    parameters = (
        coefficient("a", "size of the term in model size", {"loss": 1, "N": "alpha"}),
        exponent("alpha", "exponent of total parameters"),
        coefficient("b", "size of the term in data", {"loss": 1, "D": "beta"}),
        exponent("beta", "exponent of data"),
        coefficient("c", "size of the term in sparsity", {"loss": 1}),
        exponent("lambda", "exponent of the active share", (-5.0, 5.0), (-1.0, 1.0)),
        coefficient("d", "size of the term in sparsity and size", {"loss": 1, "N": "gamma"}),
        exponent("delta", "exponent of the active share in that term", (-5.0, 5.0), (-1.0, 1.0)),
        exponent("gamma", "exponent of total parameters in that term"),
        floor("e", meaning="loss of an infinite model on infinite data, apart from the term in sparsity"),
    )
    linear = ("a", "b", "c", "d", "e")
    references = (
        Reference(
            {
                "a": 16612.50, "alpha": 0.5962, "b": 5455.67, "beta": 0.3954, "c": 0.4598, "lambda": -0.1666,
                "d": 17.26, "delta": 0.1603, "gamma": 0.1595, "e": 0.94,
            },
            "Abnar et al. 2025, Table 3",
            "secondary",
        ),
    )  # fmt: skip

    def predict(self, p: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
        """The loss at `columns` N (total parameters), D (tokens) and S (inactive share)."""
        active, size = 1.0 - columns["S"], columns["N"]
        mixed = active ** -p["delta"] * size ** -p["gamma"]
        return (
            p["e"]
            + p["a"] * size ** -p["alpha"]
            + p["b"] * columns["D"] ** -p["beta"]
            + p["c"] * active ** -p["lambda"]
            + p["d"] * mixed
        )

    def check(self, table: Mapping[str, Any]) -> None:
        """ValueError where a row has no active experts."""
        below_one(table)


@dataclass(frozen=True)
class DenseSparse(Law):
    """L(N, D, S) = e (1 - S)^gamma + (a (1 - S)^alpha + c S) / N^alpha + b / D^beta.

    One law for dense models (S = 0, where it is the Chinchilla law), pruned ones and mixtures of experts: S is the
    share of weights or experts that is inactive. N is the number of active parameters, as the public code that we read
    counts them (total = N / (1 - S)); D of training tokens. Source: Hossain et al. 2025 (arXiv:2508.06617),
    equation 7, from a single secondary source. The floor goes to zero as S goes to one, which no measurement supports.
    """

    name = "Dense and sparse"
    formula = "L(N, D, S) = e (1 - S)^gamma + (a (1 - S)^alpha + c S) / N^alpha + b / D^beta"
    source = "Hossain et al. 2025, arXiv:2508.06617, equation 7"
    inputs = (
        Column("N", "active parameters", ("a", "alpha")),
        Column("D", "training tokens", ("b", "beta")),
        Column("S", "share of the weights or experts that is inactive, below 1", ("c", "gamma"), "fraction"),
    )
    parameters = (
        floor("e", meaning="loss of an infinite dense model on infinite data"),
        exponent("gamma", "exponent of the active share in the floor", (0.0, 10.0), (0.005, 3.0)),
        coefficient("a", "size of the term in model size", {"loss": 1, "N": "alpha"}),
        exponent("alpha", "exponent of active parameters, and of the active share"),
        coefficient("c", "what sparsity adds to the term in model size", {"loss": 1, "N": "alpha"}),
        coefficient("b", "size of the term in data", {"loss": 1, "D": "beta"}),
        exponent("beta", "exponent of data"),
    )
    linear = ("e", "a", "c", "b")
    references = (
        Reference(
            {"e": 0.57, "gamma": 1.19, "a": 8.26, "alpha": 0.08, "c": 3.57, "b": 6324.82, "beta": 0.40},
            "Hossain et al. 2025, Table IX, mixtures of experts",
            "secondary",
        ),
        Reference(
            {"e": 0.15, "gamma": 2.00, "a": 86.03, "alpha": 0.28, "c": 29.26, "b": 7.90, "beta": 0.08},
            "Hossain et al. 2025, Table VIII, pruned models",
            "secondary",
        ),
    )

    def predict(self, p: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
        """The loss at `columns` N (active parameters), D (tokens) and S (inactive share)."""
        sparsity, active = columns["S"], 1.0 - columns["S"]
        in_size = (p["a"] * active ** p["alpha"] + p["c"] * sparsity) * columns["N"] ** -p["alpha"]
        return p["e"] * active ** p["gamma"] + in_size + p["b"] * columns["D"] ** -p["beta"]

    def check(self, table: Mapping[str, Any]) -> None:
        """ValueError where a row has no active weights."""
        below_one(table)


@dataclass(frozen=True)
class FineGrainedMoE(Law):
    """L(N, D, G) = c + (g / G^gamma + a) / N^alpha + b / D^beta, for a mixture with a fixed expansion.

    G is the granularity: how many times smaller an expert's hidden size is than the feed-forward layer that it
    replaces. N is the total number of parameters without embeddings, D the number of training tokens. Source:
    Krajewski et al. 2024 (arXiv:2402.07871), equation 9, at 64 times the parameters of the dense feed-forward layers
    and G from 1 to 16. G without limit is the Chinchilla law, but the cost of routing, which the law leaves out, grows
    with G. g and a are told apart by the curvature in ln G only: G should span a factor of 16.
    """

    name = "Fine-grained MoE"
    formula = "L(N, D, G) = c + (g / G^gamma + a) / N^alpha + b / D^beta"
    source = "Krajewski et al. 2024, arXiv:2402.07871, equation 9"
    inputs = (
        Column("N", "total parameters without embeddings", ("a", "alpha")),
        Column("D", "training tokens", ("b", "beta")),
        Column("G", "granularity: feed-forward size over expert size", ("g", "gamma")),
    )
    parameters = (
        floor("c"),
        coefficient("g", "size of what coarse experts cost", {"loss": 1, "N": "alpha", "G": "gamma"}),
        exponent("gamma", "exponent of granularity"),
        coefficient("a", "size of the term in model size", {"loss": 1, "N": "alpha"}),
        exponent("alpha", "exponent of model size"),
        coefficient("b", "size of the term in data", {"loss": 1, "D": "beta"}),
        exponent("beta", "exponent of data"),
    )
    linear = ("c", "g", "a", "b")
    references = (
        Reference(
            {"c": 0.47, "g": 2.1, "gamma": 0.58, "a": 18.1, "alpha": 0.115, "b": 30.8, "beta": 0.147},
            "Krajewski et al. 2024, Table 1, mixtures with expansion 64",
            "secondary",
        ),
    )

    def predict(self, p: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
        """The loss at `columns` N (total parameters), D (tokens) and G (granularity)."""
        in_size = (p["g"] * columns["G"] ** -p["gamma"] + p["a"]) * columns["N"] ** -p["alpha"]
        return p["c"] + in_size + p["b"] * columns["D"] ** -p["beta"]
