"""Batch size and learning rate: steps to a target loss, the critical batch, and published power laws for both.

steps to a target at several batch sizes --fit StepsToTarget--> a, b --critical_batch--> B* per model size
                                                                          --fit CriticalBatch--> B*(N)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from scaling.laws.law import Column, Law, Reference
from scaling.laws.power import PowerLaw
from scaling.laws.terms import coefficient


@dataclass(frozen=True)
class StepsToTarget(Law):
    """S(B) = a + b / B: optimizer steps to a target loss at batch size B, each batch size tuned.

    The unit of B is the table's (sequences or tokens). a is the number of steps that no batch undercuts, b the data
    that small batches need; S / a - 1 and B S / b - 1 are inverse to each other (McCandlish et al. 2018,
    arXiv:1812.06162, whose critical batch is b / a). The target is one loss for all rows: one fit per model.
    """

    name = "Steps to a target"
    formula = "S(B) = a + b / B"
    source = "McCandlish et al. 2018, arXiv:1812.06162; as used by Zhang et al. 2024, arXiv:2410.21676"
    inputs = (Column("B", "batch size, in sequences or tokens", ("a", "b")),)
    target = "steps"
    parameters = (
        coefficient("a", "steps at an infinite batch", {"steps": 1}),
        coefficient("b", "data at an infinitesimal batch, in units of B", {"steps": 1, "B": 1}),
    )
    linear = ("a", "b")

    def predict(self, p: Mapping[str, Any], columns: Mapping[str, Any]) -> Any:
        """Steps at `columns` B."""
        return p["a"] + p["b"] / columns["B"]

    def critical_batch(self, p: Mapping[str, Any], reference: Any, overhead: float = 0.2) -> Any:
        """The batch size whose steps exceed by `overhead` what perfect scaling from `reference` would need.

        S(B) = (1 + overhead) S(reference) reference / B gives B = overhead b / a + (1 + overhead) reference. Zhang et
        al. 2024 use 256 sequences of 512 tokens and 20 %. As reference and overhead go to 0 and 1 it is b / a.
        """
        return overhead * p["b"] / p["a"] + (1 + overhead) * reference


@dataclass(frozen=True)
class CriticalBatch(PowerLaw):
    """B = k N^a_N: the critical batch size at a model's compute-optimal tokens.

    N is the number of parameters, B in sequences of 512 tokens for the reference. Zhang et al. 2024 (arXiv:2410.21676)
    attribute the growth to the tokens, which rise with N here, not to N.
    """

    x: tuple[str, ...] = ("N",)
    y: str = "B"

    name = "Critical batch size"
    source = "Zhang et al. 2024, arXiv:2410.21676"
    references = (
        Reference(
            {"k": 93.197 * 1e6**-0.46828, "a_N": 0.46828},
            "least squares on the authors' five models of 85M to 1.2B (hlzhang109/critical-batch-size)",
            "refit",
        ),
    )


@dataclass(frozen=True)
class StepLawRate(PowerLaw):
    """lr = k N^a_N D^a_D: the best peak learning rate (Step Law; Li et al. 2025, arXiv:2503.04715).

    N is parameters without embeddings, D training tokens. The constants are known from reviews of the paper.
    """

    x: tuple[str, ...] = ("N", "D")
    y: str = "lr"

    name = "Step Law, learning rate"
    source = "Li et al. 2025, arXiv:2503.04715"
    references = (
        Reference({"k": 1.79, "a_N": -0.713, "a_D": 0.307}, "Li et al. 2025, as two reviews quote it", "secondary"),
    )


@dataclass(frozen=True)
class StepLawBatch(PowerLaw):
    """B = k D^a_D: the best batch size in tokens (Step Law; Li et al. 2025, arXiv:2503.04715).

    D is training tokens; the paper finds no dependence on N. The constants are known from reviews of the paper.
    """

    x: tuple[str, ...] = ("D",)
    y: str = "B"

    name = "Step Law, batch size"
    source = "Li et al. 2025, arXiv:2503.04715"
    references = (Reference({"k": 0.58, "a_D": 0.571}, "Li et al. 2025, as two reviews quote it", "secondary"),)


@dataclass(frozen=True)
class DeepSeekRate(PowerLaw):
    """lr = k C^a_C: the best learning rate (DeepSeek LLM; Bi et al. 2024, arXiv:2401.02954).

    C is training FLOPs counted as non-embedding FLOPs per token, attention included, times tokens. The constants are
    recalled.
    """

    x: tuple[str, ...] = ("C",)
    y: str = "lr"

    name = "DeepSeek, learning rate"
    source = "Bi et al. 2024, arXiv:2401.02954"
    meanings: ClassVar[Mapping[str, str]] = {"C": "training FLOPs, without embeddings, with attention"}
    references = (Reference({"k": 0.3118, "a_C": -0.125}, "Bi et al. 2024, recalled", "recalled"),)


@dataclass(frozen=True)
class DeepSeekBatch(PowerLaw):
    """B = k C^a_C: the best batch size in tokens (DeepSeek LLM; Bi et al. 2024, arXiv:2401.02954).

    C as for `DeepSeekRate`. The constants are recalled.
    """

    x: tuple[str, ...] = ("C",)
    y: str = "B"

    name = "DeepSeek, batch size"
    source = "Bi et al. 2024, arXiv:2401.02954"
    meanings: ClassVar[Mapping[str, str]] = DeepSeekRate.meanings
    references = (Reference({"k": 0.2920, "a_C": 0.3271}, "Bi et al. 2024, recalled", "recalled"),)


@dataclass(frozen=True)
class HorizonRate(PowerLaw):
    """lr = k N^a_N D^a_D, both exponents negative: the best learning rate falls with size and with the token horizon.

    N is the number of parameters, D training tokens (Bjorck et al. 2024, arXiv:2409.19913). The coefficient depends
    on the recipe; we are not sure enough of the paper's constants to give any.
    """

    x: tuple[str, ...] = ("N", "D")
    y: str = "lr"

    name = "Learning rate over token horizons"
    source = "Bjorck et al. 2024, arXiv:2409.19913"


@dataclass(frozen=True)
class OptimalTimescale(PowerLaw):
    """tau = k TPP^a_TPP: the best timescale of AdamW's average of weights, as a share of the training.

    tau = B / (lr weight_decay D), as `timescale` gives it, at the best weight decay; TPP = D / N, tokens per parameter.
    Source: Bergsma et al. 2025 (Power Lines, arXiv:2505.13738). The constants are recalled (the exponent is confirmed
    by a review of the paper only).
    """

    x: tuple[str, ...] = ("TPP",)
    y: str = "tau"

    name = "Power Lines, timescale"
    source = "Bergsma et al. 2025, arXiv:2505.13738"
    meanings: ClassVar[Mapping[str, str]] = {"TPP": "training tokens per parameter"}
    references = (Reference({"k": 1.084, "a_TPP": -0.527}, "Bergsma et al. 2025, recalled", "recalled"),)

    def weight_decay(self, p: Mapping[str, Any], batch: Any, lr: Any, size: Any, tokens: Any) -> Any:
        """The best weight decay of a run of `tokens` in batches of `batch` tokens at peak rate `lr`."""
        return timescale(batch, lr, self.predict(p, {"TPP": tokens / size}), tokens)


@dataclass(frozen=True)
class PowerLinesBatch(PowerLaw):
    """B = k D^a_D: the batch size of least loss, in sequences of 2048 tokens for the reference.

    D is training tokens; the paper finds no dependence on N (Bergsma et al. 2025, arXiv:2505.13738). The constants
    and their unit are recalled.
    """

    x: tuple[str, ...] = ("D",)
    y: str = "B"

    name = "Power Lines, optimal batch size"
    source = "Bergsma et al. 2025, arXiv:2505.13738"
    references = (Reference({"k": 0.0306, "a_D": 0.383}, "Bergsma et al. 2025, recalled", "recalled"),)


@dataclass(frozen=True)
class PowerLinesCriticalBatch(PowerLaw):
    """B = k D^a_D: the critical batch size, in sequences of 2048 tokens for the reference.

    D is training tokens; the paper finds no dependence on N (Bergsma et al. 2025, arXiv:2505.13738). The constants
    and their unit are recalled.
    """

    x: tuple[str, ...] = ("D",)
    y: str = "B"

    name = "Power Lines, critical batch size"
    source = "Bergsma et al. 2025, arXiv:2505.13738"
    references = (Reference({"k": 0.0471, "a_D": 0.462}, "Bergsma et al. 2025, recalled", "recalled"),)


def timescale(batch: Any, lr: Any, weight_decay: Any, tokens: Any) -> Any:
    """tau = batch / (lr weight_decay tokens): the steps that AdamW averages weights over, 1 / (lr weight_decay), as a
    share of the training; `batch` and `tokens` in one unit, `lr` the peak. tau and weight_decay may change places."""
    return batch / (lr * weight_decay * tokens)
