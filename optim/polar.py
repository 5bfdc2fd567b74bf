"""Matrix functions of the matrix optimizers: Newton-Schulz iterations for the polar factor, inverse roots.

The polar factor of G = U S V' is U V', over the singular values that are not zero: (GG')^(-1/2) G. An odd polynomial
p(X) = (a + b XX' + c (XX')^2) X acts on the singular values alone, so iterating one whose fixed point is 1 whitens.
A matrix of zeros gives zeros, and rows or columns of zeros stay zero: nothing here divides by what may vanish.
"""

import torch
from torch import Tensor

CHECK_EVERY = 4  # iterations between looks at convergence: on a GPU each look waits for all work queued before it


def normalized(x: Tensor) -> Tensor:
    """x / ||x||_F, also where squares of the entries would underflow; zeros stay zeros."""
    tiny = torch.finfo(x.dtype).tiny
    x = x / x.abs().amax().clamp(min=tiny)
    return x / torch.linalg.vector_norm(x).clamp(min=tiny)


def quintic(x: Tensor, coefficients: tuple[float, float, float], iterations: int) -> Tensor:
    """Muon's: a fixed number of X <- (a + b XX' + c (XX')^2) X from X = x/||x||_F, singular values near 1."""
    if x.shape[0] > x.shape[1]:
        return quintic(x.mT, coefficients, iterations).mT
    a, b, c = coefficients
    x = normalized(x)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def polar(x: Tensor, tolerance: float) -> Tensor:
    """The polar factor by X <- (3 X - XX'X)/2, its singular values within `tolerance` (< 0.1) of those of U V', 1.

    That holds, up to rounding, for every singular value above max(rows, columns) * eps * the largest, eps being that of
    x's dtype. Smaller ones are rounding: they end between 0 and 1, near 0 where few iterations are enough for the rest.
    Nothing else is assumed of the spectrum, and the iterations are bounded: 45 in float32, 95 in float64.

    The iteration is SWAN's (arXiv:2412.13148, eq. 32: Y <- beta Y(3I - ZY), Z <- beta(3I - ZY)Z, return ZG) with
    beta = 1/2, since ZYG = XX'X; in X alone, no Z grows without bound where GG' is singular. It starts from
    X = x/||xx'||_F^(1/2), whose largest singular value is in [rows^(-1/4), 1]; with ||x||_F it could be rows^(-1/2).
    """
    if x.shape[0] > x.shape[1]:
        return polar(x.mT, tolerance).mT
    info = torch.finfo(x.dtype)
    x = normalized(x)
    gram = x @ x.mT
    size = torch.linalg.vector_norm(gram).clamp(min=info.tiny)
    x, gram = x / size.sqrt(), gram / size
    # s -> (3 s - s^3)/2 keeps the order of singular values and never exceeds 1, so all that count stay above `least`,
    # which starts below them and goes the same way. One that moves by less than `least` does is therefore not small and
    # about to grow, but near 1: about its move away, and 1.5 move^2 once it is made. ||step||_F bounds all moves.
    least = max(x.shape) * info.eps / x.shape[0] ** 0.25
    iteration = 0
    while least < 1 - max(tolerance, info.eps):
        step = torch.addmm(x, gram, x, beta=0.5, alpha=-0.5)
        x = x + step
        move = (least - least**3) / 2
        least, iteration = least + move, iteration + 1
        if iteration % CHECK_EVERY == 0 and torch.linalg.vector_norm(step) <= min(move, tolerance**0.5 / 2):
            break
        gram = x @ x.mT
    return x


def inverse_root(x: Tensor, root: int, eps: float) -> Tensor:
    """(x + eps * largest eigenvalue * I)^(-1/root) of a symmetric, positive semidefinite x.

    Without eps the pseudo-inverse's root: eigenvalues that are rounding of zero, relative to the largest, contribute
    nothing. The decomposition is done in float64, since x holds squares.
    """
    values, vectors = torch.linalg.eigh(x.double())
    values = values.clamp(min=0)
    largest = values[-1]
    floor = x.shape[0] * torch.finfo(x.dtype).eps * largest if eps == 0 else 0.0
    powers = torch.where(values + eps * largest > floor, (values + eps * largest) ** (-1 / root), 0.0)
    return ((vectors * powers) @ vectors.mT).to(x.dtype)
