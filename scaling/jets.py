"""Exact first and second derivatives of a formula, by evaluating it on jets.

A `Jet` carries the value of an expression together with its gradient and Hessian with respect to a few
parameters. Arithmetic, powers, `exp` and `log` carry all three by the chain rule (second-order forward mode;
Griewank and Walther, Evaluating Derivatives, 2nd ed., chapter 13), so a law writes its formula once, as the paper
does, and the fitting engine gets derivatives that are exact to rounding:

    theta (problems, parameters) --variables()--> one Jet per parameter --the law's formula--> Jet --residuals

Values are NumPy arrays that broadcast, usually (problems, 1) for what depends on parameters alone and
(problems, rows) for what meets the data. Derivatives that are zero are not stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Value = np.ndarray | float


class Jet:
    """A value with `grad[i]` = d/dx_i and `hess[i, j]` = d2/dx_i dx_j (i <= j); absent entries are zero."""

    __slots__ = ("grad", "hess", "value")
    __array_ufunc__ = None  # so that ndarray * Jet comes to Jet.__rmul__, not elementwise to NumPy

    def __init__(self, value: Value, grad: dict[int, Value], hess: dict[tuple[int, int], Value]):
        self.value, self.grad, self.hess = value, grad, hess

    def __neg__(self) -> Jet:
        return self * -1.0

    def __add__(self, other: Jet | Value) -> Jet:
        if not isinstance(other, Jet):
            return Jet(self.value + other, self.grad, self.hess)
        return Jet(self.value + other.value, _sum(self.grad, other.grad), _sum(self.hess, other.hess))

    def __mul__(self, other: Jet | Value) -> Jet:
        if not isinstance(other, Jet):
            return Jet(self.value * other, _times(self.grad, other), _times(self.hess, other))
        hess = _sum(_times(self.hess, other.value), _times(other.hess, self.value))
        for i, left in self.grad.items():  # the cross terms: u_i v_j + u_j v_i
            for j, right in other.grad.items():
                term = left * right if i != j else 2.0 * (left * right)
                key = (i, j) if i <= j else (j, i)
                hess[key] = hess[key] + term if key in hess else term
        grad = _sum(_times(self.grad, other.value), _times(other.grad, self.value))
        return Jet(self.value * other.value, grad, hess)

    def __sub__(self, other: Jet | Value) -> Jet:
        return self + -other

    def __rsub__(self, other: Value) -> Jet:
        return -self + other

    def __truediv__(self, other: Jet | Value) -> Jet:
        return self * (other**-1.0 if isinstance(other, Jet) else 1.0 / other)

    def __rtruediv__(self, other: Value) -> Jet:
        return self**-1.0 * other

    def __pow__(self, power: Jet | float) -> Jet:
        if isinstance(power, Jet):
            return exp(log(self) * power)
        slope = power * self.value ** (power - 1.0)
        return _chain(self, self.value**power, slope, power * (power - 1.0) * self.value ** (power - 2.0))

    def __rpow__(self, base: Value) -> Jet:
        return exp(self * np.log(base))

    __radd__, __rmul__ = __add__, __mul__


def variables(theta: np.ndarray) -> list[Jet]:
    """One jet of value (problems, 1) per column of `theta` (problems, parameters): the independent variables."""
    return [Jet(theta[:, [i]], {i: 1.0}, {}) for i in range(theta.shape[1])]


def exp(x: Any) -> Any:
    """e^x."""
    if not isinstance(x, Jet):
        return np.exp(x)
    value = np.exp(x.value)
    return _chain(x, value, value, value)


def log(x: Any) -> Any:
    """The natural logarithm."""
    if not isinstance(x, Jet):
        return np.log(x)
    inverse = 1.0 / x.value
    return _chain(x, np.log(x.value), inverse, -inverse * inverse)


def expm1(x: Any) -> Any:
    """e^x - 1, accurate near zero."""
    if not isinstance(x, Jet):
        return np.expm1(x)
    value = np.exp(x.value)
    return _chain(x, np.expm1(x.value), value, value)


def log1p(x: Any) -> Any:
    """log(1 + x), accurate near zero."""
    if not isinstance(x, Jet):
        return np.log1p(x)
    inverse = 1.0 / (1.0 + x.value)
    return _chain(x, np.log1p(x.value), inverse, -inverse * inverse)


def softplus(x: Any) -> Any:
    """log(1 + e^x), without overflow."""
    value = x.value if isinstance(x, Jet) else x
    result = np.logaddexp(0.0, value)
    if not isinstance(x, Jet):
        return result
    slope = np.exp(value - result)
    return _chain(x, result, slope, slope * (1.0 - slope))


def where(condition: Any, x: Any, y: Any) -> Any:
    """`x` where `condition` (an array of booleans) holds, `y` elsewhere; derivatives are those of the chosen one."""
    if not isinstance(x, Jet) and not isinstance(y, Jet):
        return np.where(condition, x, y)
    x, y = (z if isinstance(z, Jet) else Jet(z, {}, {}) for z in (x, y))

    def chosen(left: dict, right: dict) -> dict:
        return {k: np.where(condition, left.get(k, 0.0), right.get(k, 0.0)) for k in {**left, **right}}

    return Jet(np.where(condition, x.value, y.value), chosen(x.grad, y.grad), chosen(x.hess, y.hess))


def linear(f: Callable[[np.ndarray], np.ndarray], x: Any, shape: tuple[int, ...]) -> Any:
    """f(x) for a linear map `f` of arrays: a sum over groups, a matrix product. Entries that are constant along an
    axis are broadcast to `shape` (as x's value has it) before."""
    if not isinstance(x, Jet):
        return f(np.broadcast_to(x, shape))

    def mapped(entries: dict) -> dict:
        return {key: f(np.broadcast_to(entry, shape)) for key, entry in entries.items()}

    return Jet(f(np.broadcast_to(x.value, shape)), mapped(x.grad), mapped(x.hess))


def _chain(x: Jet, value: Value, slope: Value, curvature: Value) -> Jet:
    """f(x) from f, f' and f'' at x: grad f' x_i, hess f' x_ij + f'' x_i x_j."""
    hess = _times(x.hess, slope)
    order = sorted(x.grad)
    for at, i in enumerate(order):
        left = curvature * x.grad[i]
        for j in order[at:]:
            term = left * x.grad[j]
            hess[i, j] = hess[i, j] + term if (i, j) in hess else term
    return Jet(value, _times(x.grad, slope), hess)


def _times(entries: dict, factor: Value) -> dict:
    return {key: entry * factor for key, entry in entries.items()}


def _sum(left: dict, right: dict) -> dict:
    total = dict(left)
    for key, entry in right.items():
        total[key] = total[key] + entry if key in total else entry
    return total
