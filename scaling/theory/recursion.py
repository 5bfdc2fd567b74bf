"""The expected risk of every step: the exact recursion over modes, one step after another or a block at a time.

    modes, lr (T,), batch_size (T,) --recursion--> risk before every step and after the last (T + 1,)

`blocked` gives the same numbers: the steps of a block meet only through their risks, so they are a small triangular
system, solved for all blocks of a chunk at once. What is left to do one after another is a product per block.
"""

from __future__ import annotations

import numpy as np

from data.problems import Floats
from scaling.theory.modes import Modes

_CHUNK = 2**17  # numbers of an array that is alive at a time: what a cache holds
_BLOCK = 8  # steps


def plain(
    modes: Modes,
    lr: Floats,
    batch_size: Floats,
    weights: Floats | None = None,
    weight_decay: float = 0.0,
    kurtosis: float = 3.0,
) -> Floats:
    """Risks (T + 1,) of the iterates, or of their average with these `weights` (T,), as optim.averaging has them: nan
    before it begins. `weight_decay` pulls to 0, times the rate, beside the gradient (decoupled)."""
    q, noise = modes.q, modes.noise
    r = modes.r.copy()
    between, averaged = r.copy(), r.copy()  # l E[average delta], l E[average^2]
    mean, mean_of_average = np.ones_like(r), np.ones_like(r)  # of delta, in units of -w*
    risks = np.full(len(lr) + 1, np.nan)
    begun = weights is None
    if begun:
        risks[0] = r.sum()
    for t, (rate, batch) in enumerate(zip(lr.tolist(), batch_size.tolist(), strict=True)):
        risk = r.sum()
        pull, contraction = rate * weight_decay, 1.0 - rate * weight_decay - rate * modes.rates
        r = modes.kept(rate, batch, kurtosis, weight_decay) * r + rate**2 / batch * (risk + noise) * q
        if pull:
            r += modes.r * (pull**2 + 2.0 * pull * contraction * mean)
            between_next = contraction * between + pull * modes.r * mean_of_average
            mean = contraction * mean + pull
        else:
            between_next = contraction * between
        if weights is None:
            risks[t + 1] = r.sum()
            continue
        a = weights[t]
        averaged = (1 - a) ** 2 * averaged + 2 * a * (1 - a) * between_next + a**2 * r
        between = (1 - a) * between_next + a * r
        mean_of_average = (1 - a) * mean_of_average + a * mean
        begun = begun or a > 0
        if begun:
            risks[t + 1] = averaged.sum()
    return risks


def blocked(modes: Modes, r: Floats, lr: Floats, batch_size: Floats, kurtosis: float = 3.0) -> tuple[Floats, Floats]:
    """Risks (T + 1,) from the state r on, and r after the last step; of iterates, without weight decay."""
    count, size = len(lr), max(1, min(_BLOCK, 4096 // len(modes.r)))
    steps = -(-count // size) * size
    lr, batch_size = np.append(lr, np.zeros(steps - count)), np.append(batch_size, np.ones(steps - count))
    chunk = max(1, _CHUNK // (size * len(modes.r))) * size
    risks = np.empty(steps + 1)
    for begin in range(0, steps, chunk):
        part = slice(begin, min(begin + chunk, steps))
        risks[part], r = _chunk(modes, r, lr[part], batch_size[part], size, kurtosis)
    risks[steps] = r.sum()
    return risks[: count + 1], r


def _chunk(
    modes: Modes, r: Floats, lr: Floats, batch_size: Floats, size: int, kurtosis: float
) -> tuple[Floats, Floats]:
    """Risks before each step, and r after the last; blocks of `size` steps fill the chunk."""
    blocks = len(lr) // size
    beta = (lr**2 / batch_size).reshape(blocks, size)
    kept = modes.kept(lr, batch_size, kurtosis).reshape(blocks, size, -1)
    noisy = int(np.flatnonzero(modes.q)[-1]) + 1 if modes.q.any() else 0  # no step brings anything to later modes
    reached = kept[..., :noisy]
    # tails[:, i]: what a unit of q that step i brings is worth at the end of the block
    tails = np.empty_like(reached)
    tails[:, -1] = modes.q[:noisy]
    for i in range(size - 1, 0, -1):
        tails[:, i - 1] = tails[:, i] * reached[:, i]
    before = np.ones_like(kept)  # what r at the start of the block is worth before step j
    for j in range(1, size):
        before[:, j] = before[:, j - 1] * kept[:, j - 1]
    # meet[:, j, i]: what step i brings to the risk before step j > i
    meet = np.zeros((blocks, size, size))
    window = np.broadcast_to(modes.q[:noisy], reached.shape)
    for lag in range(1, size):
        window = window[:, :-1] * reached[:, lag - 1 : -1] if lag > 1 else window[:, :-1]
        later = np.arange(lag, size)
        meet[:, later, later - lag] = window.sum(-1)
    meet *= beta[:, None, :]
    # risks = before r + meet (risks + noise)
    solved = np.linalg.inv(np.eye(size) - meet)
    from_start = solved @ before
    from_noise = modes.noise * (solved @ meet.sum(-1, keepdims=True))[..., 0]
    end = before[:, -1] * kept[:, -1]
    tails *= beta[..., None]
    noise_at_end = modes.noise * tails.sum(1)
    risks, r = np.empty((blocks, size)), r.copy()
    for risk, start, noise, factor, tail, left in zip(
        risks, from_start, from_noise, end, tails, noise_at_end, strict=True
    ):
        start.dot(r, out=risk)
        risk += noise
        r *= factor
        r[:noisy] += risk.dot(tail)
        r[:noisy] += left
    return risks.ravel(), r
