"""Newton-Schulz iterations and inverse roots against singular value decompositions, in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optim.muon import Muon
from optim.polar import inverse_root, polar, quintic
from optim.shampoo import Shampoo
from optim.swan import SWAN, grad_norm

CONVERGED = 1e-12


def matrix(rows, columns, seed=0, rank=None, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    if rank is None:
        return torch.randn(rows, columns, generator=draw, dtype=torch.float64).to(dtype)
    left = torch.randn(rows, rank, generator=draw, dtype=torch.float64)
    return (left @ torch.randn(rank, columns, generator=draw, dtype=torch.float64)).to(dtype)


def exact_polar(x):
    """U V' over the singular values that are not rounding of zero."""
    u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
    rank = int((s > max(x.shape) * torch.finfo(x.dtype).eps * s[0]).sum())
    return u[:, :rank] @ vh[:rank]


sizes = st.integers(1, 12)


@given(sizes, sizes, st.integers(0, 99), st.sampled_from([1e-30, 1.0, 1e30]))
def test_shampoo_swan_and_muons_limit_are_one_matrix_the_polar_factor(rows, columns, seed, scale):
    x = matrix(rows, columns, seed)
    expected = exact_polar(x)
    shampoo = Shampoo(eps=0.0, momentum=0.0, adjust_lr="none", beta=None)
    tolerances = {"rtol": 0, "atol": 1e-5}  # roots of squares: half of float64's digits are left
    torch.testing.assert_close(shampoo.direction(x, {}), expected, **tolerances)
    torch.testing.assert_close(polar(x * scale, CONVERGED), expected, rtol=0, atol=1e-8)
    converging = (15 / 8, -10 / 8, 3 / 8)  # a quintic whose fixed point 1 attracts: Muon run to its limit
    muon = Muon(momentum=0.0, coefficients=converging, iterations=60, adjust_lr="none")
    torch.testing.assert_close(muon.direction(x * scale, {}), expected, rtol=0, atol=1e-8)


@given(sizes, sizes, st.integers(0, 99))
def test_muons_coefficients_keep_singular_vectors_and_bring_values_near_one(rows, columns, seed):
    u, s, vh = torch.linalg.svd(matrix(rows, columns, seed), full_matrices=False)
    x = u @ torch.diag(s.clamp(min=0.05 * s[0])) @ vh
    rotated = u.mT @ quintic(x, (3.4445, -4.7750, 2.0315), 5) @ vh.mT
    values = rotated.diagonal()
    torch.testing.assert_close(rotated, torch.diag(values), rtol=0, atol=1e-10)
    assert values.min() > 0.6 and values.max() < 1.25


def test_the_whitening_is_the_papers_coupled_iteration():
    """Y <- (3I - ZY)Y/2, Z <- (3I - ZY)Z/2, return ZG (SWAN, eq. 32, beta = 1/2)."""
    g = matrix(3, 4)
    g = g / torch.linalg.vector_norm(g)
    y, z, identity = g @ g.mT, torch.eye(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    for _ in range(40):
        factor = (3 * identity - z @ y) / 2
        y, z = factor @ y, factor @ z
    torch.testing.assert_close(polar(g, CONVERGED), z @ g, rtol=0, atol=1e-8)  # Y and Z drift apart


@pytest.mark.parametrize("condition", [1, 36.75, 1e3, 1e6])
def test_whitening_runs_to_its_tolerance_whatever_the_condition_number(condition):
    """A fixed count of iterations does not: 6 leave the one of condition 36.75 far away."""
    u, _, vh = torch.linalg.svd(matrix(6, 9), full_matrices=False)
    x = u @ torch.diag(torch.logspace(0, -1, 6, base=condition, dtype=torch.float64)) @ vh
    torch.testing.assert_close(polar(x, CONVERGED), u @ vh, rtol=0, atol=1e-9)
    torch.testing.assert_close(polar(x.mT, CONVERGED), (u @ vh).mT, rtol=0, atol=1e-9)


def of_values(values, columns, seed=0, dtype=torch.float32):
    """A matrix with these singular values."""
    u = torch.linalg.qr(matrix(len(values), len(values), seed)).Q
    v = torch.linalg.qr(matrix(columns, len(values), seed + 1)).Q
    return (u @ torch.diag(torch.as_tensor(values, dtype=torch.float64)) @ v.mT).to(dtype)


@pytest.mark.parametrize("values", [[1.0] + 63 * [1e-4], 251 * [1.0] + 5 * [1e-3]], ids=["one leads", "few lag"])
def test_whitening_waits_for_singular_values_that_hardly_move_the_norm(values):
    x = of_values(values, len(values))
    assert (torch.linalg.svdvals(polar(x, SWAN().tolerance)) - 1).abs().max() < 1e-3


@given(st.lists(st.floats(-10, 0), min_size=1, max_size=12), st.integers(0, 20), st.sampled_from([0.09, 1e-3, 1e-6]))
def test_every_singular_value_that_is_not_rounding_comes_within_tolerance_of_one(exponents, more, tolerance):
    columns = len(exponents) + more
    for dtype in (torch.float32, torch.float64):
        x = of_values([10**exponent for exponent in exponents], columns, dtype=dtype)
        given_values = torch.linalg.svdvals(x.double())
        rounding = 1.1 * columns * torch.finfo(dtype).eps * given_values[0]
        values = torch.linalg.svdvals(polar(x, tolerance).double())
        noise = 32 * torch.finfo(dtype).eps
        assert values.max() < 1 + noise
        assert (values[given_values > rounding] > 1 - tolerance - noise).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-30])
def test_rank_deficient_matrices_stop_with_their_range_whitened(dtype, tolerance):
    """The other directions are still near rounding then, unless the tolerance is below rounding: it runs to the end."""
    x = matrix(96, 128, rank=40, dtype=dtype)
    values = torch.linalg.svdvals(polar(x, tolerance))
    assert (values[:40] - 1).abs().max() < max(tolerance, 32 * torch.finfo(dtype).eps)
    assert values.isfinite().all() and values[40] < (1e-3 if tolerance == 1e-3 else 1)
    assert (polar(torch.zeros(3, 4, dtype=dtype), tolerance) == 0).all()


@given(sizes, sizes, st.integers(1, 12), st.integers(0, 99))
def test_rank_deficient_matrices_are_whitened_on_their_range(rows, columns, rank, seed):
    x = matrix(rows, columns, seed, min(rank, rows, columns))
    torch.testing.assert_close(polar(x, 1e-6), exact_polar(x), rtol=0, atol=1e-5)


def test_swans_update_is_the_papers():
    """(G - row mean)/row std, whitened, Frobenius norm sqrt(mn); the shorter side is the rows (eq. 30-32)."""
    x = matrix(4, 7)
    normal = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True, unbiased=False)
    torch.testing.assert_close(grad_norm(x), normal)
    expected = exact_polar(normal) * (4 * 7 / 4) ** 0.5  # the polar factor of rank 4 has norm sqrt(4)
    swan = SWAN(tolerance=CONVERGED, scale=0.3)
    torch.testing.assert_close(swan.direction(x, {}), 0.3 * expected)
    torch.testing.assert_close(swan.direction(x.mT, {}), 0.3 * expected.mT)


@pytest.mark.parametrize("size", [8, 33, 256])
def test_swan_does_not_whiten_rounding_in_the_direction_that_centring_removes(size):
    """Rows of mean 0 make a square matrix singular: the constant vector must stay out of the update in float32."""
    x = matrix(size, size, dtype=torch.float32)
    update = SWAN().direction(x, {})
    assert update.sum(1).abs().max() < 1e-2
    exact = exact_polar(grad_norm(x.double()))
    torch.testing.assert_close(update.double(), exact * 0.2 * size / exact.norm(), rtol=0, atol=2e-3)


@given(st.integers(1, 8), st.sampled_from([0.0, 1e-6, 0.5]), st.sampled_from([2, 4]), st.integers(0, 99))
def test_inverse_roots_are_those_of_the_eigenvalues(size, eps, root, seed):
    x = matrix(size, size + 2, seed)
    x = x @ x.mT
    shifted = x + eps * torch.linalg.eigvalsh(x)[-1] * torch.eye(size, dtype=torch.float64)
    power = torch.linalg.matrix_power(inverse_root(x, root, eps), root)
    torch.testing.assert_close(power @ shifted, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-6)


def test_an_inverse_root_without_eps_leaves_out_what_is_rounding_of_zero():
    for dtype in (torch.float32, torch.float64):
        x = matrix(8, 3, dtype=dtype)
        root = inverse_root(x @ x.mT, 2, 0.0)
        projector = exact_polar(x) @ exact_polar(x).mT
        torch.testing.assert_close((root @ (x @ x.mT) @ root).double(), projector, rtol=0, atol=1e-4)
        assert torch.linalg.eigvalsh(root)[-1] < 2 / torch.linalg.svdvals(x)[-1]
