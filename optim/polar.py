"""Matrix functions of the matrix optimizers: Newton-Schulz iterations for the polar factor, inverse roots.

The polar factor of G = U S V' is U V', over the singular values that are not zero: (GG')^(-1/2) G. An odd polynomial
p(X) = (a + b XX' + c (XX')^2) X acts on the singular values alone, so iterating one whose fixed point is 1 whitens.
A matrix of zeros gives zeros, and rows or columns of zeros stay zero: nothing here divides by what may vanish.
"""

import torch
from torch import Tensor

GUARD = 200  # iterations; a singular value of 1e-16, the smallest that is not rounding in float64, needs 91


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
    """The polar factor by X <- (3 X - XX'X)/2 from X = x/||x||_F, until X changes by `tolerance` at most.

    The change is relative to ||X||_F. Convergence is quadratic: what is left is about tolerance^2. Singular values that
    are still below `tolerance` when all others have reached 1 count as zero: that is how rank is decided.
    The iteration is SWAN's (arXiv:2412.13148, eq. 32: Y <- beta Y(3I - ZY), Z <- beta(3I - ZY)Z, return ZG) with
    beta = 1/2, since ZYG = XX'X; in X alone, no Z grows without bound where GG' is singular.
    """
    if x.shape[0] > x.shape[1]:
        return polar(x.mT, tolerance).mT
    x = normalized(x)
    change = torch.zeros(())
    for _ in range(GUARD):
        step = torch.addmm(x, x @ x.mT, x, beta=0.5, alpha=-0.5)
        change = torch.linalg.vector_norm(step) / torch.linalg.vector_norm(x).clamp(min=torch.finfo(x.dtype).tiny)
        x = x + step
        if change <= tolerance:
            return x
    raise RuntimeError(
        f"the whitening of a {x.shape[0]} x {x.shape[1]} matrix did not converge: after {GUARD} iterations "
        f"the relative change is {change.item():.3g}, above optimizer.tolerance={tolerance}. Use a larger tolerance."
    )


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
