"""The gradient noise scale tr(Sigma) / |G|^2, in tokens, from the gradients that a step computes anyway.

    hooks on the parameters -> |gradient| of each micro-batch, before accumulation and reduction
    sum_i n_i |g_i|^2, m    -> summed over ranks together with the losses
    update(...)             -> running means of tr(Sigma) and |G|^2 -> value

G is the expected gradient of one token's loss and Sigma its covariance over independent tokens. Micro-batch i has n_i
valid tokens and mean gradient g_i; m micro-batches (those with n_i > 0, over all ranks) make B = sum n_i tokens and
the step's gradient g = sum n_i g_i / B. Then, whatever the n_i,

    E sum_i n_i |g_i|^2 = B |G|^2 + m tr(Sigma)
    E B |g|^2           = B |G|^2 + tr(Sigma)

so tr(Sigma) = (sum_i n_i |g_i|^2 - B |g|^2) / (m - 1) and |G|^2 = |g|^2 - tr(Sigma) / B, both without bias. Tokens of
one sequence are not independent: as micro-batches hold whole sequences, Sigma is sequence_length times the covariance
of a sequence's mean gradient. With equal n_i it is the estimator of McCandlish et al. (arXiv:1812.06162, A.1). It is a
diagnostic: no measure of the critical batch size (arXiv:2505.23971).
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from train.measure import warn_once


class NoiseScale:
    """The noise scale of one run. `half_life`: tokens after which a measured step counts half in the running means.

    `sharing`: the ranks that hold parts of the same sequences; their gradients are added up before they are measured.
    """

    def __init__(
        self, half_life: float, device: torch.device | str = "cpu", sharing: dist.ProcessGroup | None = None
    ) -> None:
        self.half_life, self.sharing = half_life, sharing
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self._norms: list[Tensor] | None = None
        self._loss_scale = 1.0
        self._trace, self._signal, self._tokens = 0.0, 0.0, 0

    @contextmanager
    def watch(self, parameters: Iterable[nn.Parameter], loss_scale: float) -> Iterator[None]:
        """Within it, `micro_batch` after each backward pass takes in that pass's gradient.

        `loss_scale` is what the micro-batches' summed loss is multiplied by (world_size / valid tokens of the step).
        Hooks on the parameters read each gradient before it is accumulated or reduced; nothing is copied, but where
        sequences are shared: there a copy is added up over these ranks. They see whole gradients of this rank in one
        process, under DDP and ZeRO 1 to 3, and none under FSDP, whose parameters are shards: there nothing is measured,
        and a warning says so.
        """
        parameters = [parameter for parameter in parameters if parameter.requires_grad]
        if any(isinstance(parameter, DTensor) for parameter in parameters):
            warn_once(
                "no noise_scale: under FSDP no rank has a whole gradient of its own; other strategies can give it."
            )
            yield
            return
        norms: list[Tensor] = []
        self._norms, self._loss_scale = norms, loss_scale

        def read(gradient: Tensor) -> None:
            if self.sharing:  # in the same order on all its ranks
                gradient = gradient.float().clone()
                dist.all_reduce(gradient, group=self.sharing)
            norms.append(torch.linalg.vector_norm(gradient, dtype=torch.float32))

        handles = [parameter.register_hook(read) for parameter in parameters]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._norms = None

    def micro_batch(self, valid_tokens: int) -> None:
        """Ends a micro-batch in which this rank has that many valid tokens, right after its backward pass; no
        host-device sync."""
        if self._norms is None:
            return
        if valid_tokens:
            assert self._norms, "no parameter of the watched ones had a gradient"
            squares = torch.stack(self._norms).double().square().sum()  # |n g loss_scale|^2
            ranks = self.sharing.size() if self.sharing else 1  # each has as many of the micro-batch's tokens
            if self.sharing is None or dist.get_rank(self.sharing) == 0:  # one speaks for all
                self._sums[0] += squares / (ranks * valid_tokens * self._loss_scale**2)
                self._sums[1] += 1
        self._norms.clear()

    def take(self) -> Tensor:
        """float64 [2] on the device: this rank's sum_i n_i |g_i|^2 and m since the last call; zeros if not watched."""
        sums, self._sums = self._sums, torch.zeros_like(self._sums)
        return sums

    def update(self, sum_small: float, m: float, grad_norm: float, valid_tokens: int, tokens: int) -> None:
        """Takes in a measured step: what `take` gave, added up over all ranks, the whole gradient's norm before
        clipping, B, and the run's tokens after the step. Steps that are not finite leave the means as they were."""
        if m == 0:
            return
        if m == 1:
            warn_once(
                "no noise_scale where a step is one micro-batch: two tell noise from signal. "
                "Use a smaller launch.micro_batch_size."
            )
            return
        if not (math.isfinite(sum_small) and math.isfinite(grad_norm)):
            return
        trace = (sum_small - valid_tokens * grad_norm**2) / (m - 1)
        decay = 0.5 ** ((tokens - self._tokens) / self.half_life)
        self._trace = decay * self._trace + (1 - decay) * trace
        self._signal = decay * self._signal + (1 - decay) * (grad_norm**2 - trace / valid_tokens)
        self._tokens = tokens

    @property
    def value(self) -> float | None:
        """tr(Sigma) / |G|^2 in tokens, the ratio of the running means; None before there is a positive one of each."""
        return self._trace / self._signal if self._trace > 0 and self._signal > 0 else None

    def state_dict(self) -> dict[str, float]:
        """The running means and the tokens up to which they go, as plain numbers, equal on all ranks."""
        return {"trace": self._trace, "signal": self._signal, "tokens": self._tokens}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self._trace, self._signal, self._tokens = state["trace"], state["signal"], int(state["tokens"])
