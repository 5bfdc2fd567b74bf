"""A law, the rows of a table and a loss, as one minimisation in free centred coordinates.

    theta (problems, free parameters) --centred--> parameters --law.predict--> residuals as jets --loss--> objective

Columns and target are divided by their geometric means, so units do not matter. Fixed parameters and priors are given
in the table's own units and are converted on the way. Rows enter in blocks, so memory stays bounded at any length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from scaling import jets, newton
from scaling.laws.law import Law, Parameter, Prior
from scaling.losses import LeastSquares, Loss, has_scale

_BLOCK = 65_536  # rows evaluated at once
_CHUNK = 32_768  # rows times problems evaluated at once: what fits the processor's cache
_LOG_SCALE = Parameter("log scale", "identity", (-30.0, 5.0), (-6.0, -1.0), "log of the scale of the residuals")


@dataclass(frozen=True)
class Problem:
    """What a fit minimises. `features`: arrays (rows,) in centred units, as `law.features` made them; `target`
    (rows,), centred; `weights` (rows,); `scale`: the geometric means; `fixed` and `priors`: raw, by name; `noise`: the
    ratio of objective to minus log likelihood, which turns priors into objective (`scaling.uncertainty.noise`);
    `uncentred`: free parameters whose coordinate is raw, for profiles."""

    law: Law
    loss: Loss
    residuals: Literal["log", "linear"]
    features: dict[str, Any]
    target: np.ndarray
    weights: np.ndarray
    scale: dict[str, float]
    fixed: Mapping[str, float]
    priors: Mapping[str, Prior]
    noise: float = 1.0
    uncentred: frozenset[str] = frozenset()

    @property
    def free_parameters(self) -> tuple[Parameter, ...]:
        """The parameters that move, in the order of theta; the scale of a likelihood comes last."""
        moving = tuple(p for p in self.law.parameters if p.name not in self.fixed)
        return (*moving, _LOG_SCALE) if has_scale(self.loss) else moving

    @property
    def names(self) -> tuple[str, ...]:
        """Names of `free_parameters`."""
        return tuple(p.name for p in self.free_parameters)

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds (free parameters,)."""
        lower, upper = (np.array([p.to_free(p.bounds[end]) for p in self.free_parameters]) for end in (0, 1))
        unbound = [p.name in self.uncentred and bool(p.units) for p in self.free_parameters]
        return np.where(unbound, -np.inf, lower), np.where(unbound, np.inf, upper)

    def centred(self, free: list[Any]) -> dict[str, Any]:
        """The law's parameters in centred units, fixed ones included, from free coordinates (arrays or jets)."""
        p = {q.name: q.to_natural(x) for q, x in zip(self.free_parameters, free, strict=True)}
        p.update(self.fixed)
        # Fixed and uncentred ones are raw; the powers in units are dimensionless parameters, the same in both.
        raw = self.uncentred | set(self.fixed)
        return p | {q.name: q.rescaled(p, self._inverse) for q in self.law.parameters if q.name in raw}

    def raw(self, theta: np.ndarray) -> dict[str, Any]:
        """Parameters in the table's units, by name, from theta (..., free parameters)."""
        return self.law.rescale(self.centred(list(np.moveaxis(theta, -1, 0))), self.scale)

    def free(self, raw: Mapping[str, Any]) -> np.ndarray:
        """theta of raw parameters, the inverse of `raw`; without the scale of a likelihood."""
        moving = [p for p in self.free_parameters if p is not _LOG_SCALE]
        values = [raw[p.name] if p.name in self.uncentred else p.rescaled(raw, self._inverse) for p in moving]
        return np.stack([p.to_free(np.asarray(x, float)) for p, x in zip(moving, values, strict=True)], axis=-1)

    def residual(self, theta: np.ndarray, target: np.ndarray | None = None, rows: slice = slice(None)) -> jets.Jet:
        """Residuals (problems, rows) of theta (problems, free parameters) as jets of theta."""
        target = (self.target if target is None else target)[..., rows]
        prediction = self.law.predict(self.centred(jets.variables(theta)), self._columns(rows))
        if self.residuals == "log":
            return jets.log(prediction) - np.log(target)
        return (prediction - target) * (1.0 / self.typical)

    def minimise(
        self,
        points: np.ndarray,
        weights: np.ndarray | None = None,
        target: np.ndarray | None = None,
        box: tuple[np.ndarray, np.ndarray] | None = None,
        shifts: Mapping[str, np.ndarray] | None = None,
        progress: str = "",
    ) -> newton.Minima:
        """Ends of the minimisations from `points` (k, free). `weights` and `target` (k, rows) differ between problems
        where given, and so do bounds `box` (k, free) and `shifts` (k,) of the priors' means, in their standard
        deviations. `progress` names the work on a terminal."""
        lower, upper = self.box() if box is None else box
        size = max(np.size(values) for values in (*self.features.values(), self.target))
        chunk = int(np.clip(_CHUNK // size, 1, 128))
        for stage in self.loss.path:
            objective = partial(replace(self, loss=stage).objective, weights=weights, target=target, shifts=shifts)
            ends = newton.minimise(
                objective,
                points,
                lower,
                upper,
                floor=len(self.target) * stage.rounding,
                chunk=chunk,
                progress=progress,
            )
            points = ends.theta
        return ends

    def objective(
        self,
        theta: np.ndarray,
        which: np.ndarray,
        weights: np.ndarray | None = None,
        target: np.ndarray | None = None,
        shifts: Mapping[str, np.ndarray] | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Value (k,), gradient (k, p), Hessian and metric (k, p, p) at theta (k, p) of the problems `which` (k,)."""
        k, p = theta.shape
        total, gradient = np.zeros(k), np.zeros((k, p))
        hessian, metric = np.zeros((k, p, p)), np.zeros((k, p, p))
        with np.errstate(all="ignore"):  # a trial step may overflow; its objective is then not finite, and refused
            for rows in self._blocks():
                weight = self.weights[None, rows] if weights is None else weights[which, rows] * self.weights[rows]
                residual = self.residual(theta, None if target is None else target[which], rows)
                if has_scale(self.loss):
                    log_scale = jets.Jet(theta[:, [-1]], {p - 1: 1.0}, {})
                    residual = residual * jets.exp(-log_scale)
                    total += theta[:, -1] * weight.sum(axis=1)
                    gradient[:, -1] += weight.sum(axis=1)
                for sum_, part in zip(
                    (total, gradient, hessian, metric), self._parts(residual, weight, p), strict=True
                ):
                    sum_ += part
            for name, prior in self.priors.items():
                shift = shifts[name][which, None] if shifts else 0.0
                for sum_, part in zip(
                    (total, gradient, hessian, metric), self.penalty(theta, name, prior, shift), strict=True
                ):
                    sum_ += part
        wrong = ~(np.isfinite(total) & np.isfinite(gradient).all(1) & np.isfinite(hessian).all((1, 2)))
        wrong |= ~np.isfinite(metric).all((1, 2))
        total[wrong], gradient[wrong], hessian[wrong], metric[wrong] = np.inf, 0.0, 0.0, 0.0
        return total, gradient, hessian, metric

    def starts(self, count: int, seed: int) -> np.ndarray:
        """`count` starting points (count, free): drawn from the law's ranges; parameters in which the law is linear
        are then solved for (variable projection; Golub and Pereyra 1973), which puts every start on the right scale."""
        low, high = (np.array([p.to_free(p.start[end]) for p in self.free_parameters]) for end in (0, 1))
        theta = low + (high - low) * np.random.default_rng(seed).random((count, len(low)))
        if set(self.law.linear) & set(self.names):
            theta = np.concatenate([self._projected(theta[at : at + 64], low) for at in range(0, count, 64)])
        if has_scale(self.loss):
            with np.errstate(all="ignore"):
                size = np.log(np.median(np.abs(self.residual(theta).value), axis=1))
            theta[:, -1] = np.where(np.isfinite(size), np.clip(size, *_LOG_SCALE.bounds), theta[:, -1])
        return theta

    def sample(self, count: int, seed: int) -> Problem:
        """The same problem on `count` of its rows, drawn without replacement."""
        kept = np.sort(np.random.default_rng(seed).choice(len(self.target), count, replace=False))
        features = {name: values[kept] for name, values in self.features.items()}
        return replace(self, features=features, target=self.target[kept], weights=self.weights[kept])

    @property
    def _inverse(self) -> dict[str, float]:
        """The scale from raw units to centred ones."""
        return {unit: 1.0 / value for unit, value in self.scale.items()}

    @property
    def typical(self) -> float:
        """The size of the target that plain residuals are divided by, in centred units."""
        return float(np.sqrt(np.mean(self.target**2))) or 1.0

    def _blocks(self) -> list[slice]:
        if self.law.along_curves:  # a row needs its past
            return [slice(None)]
        return [slice(at, at + _BLOCK) for at in range(0, len(self.target), _BLOCK)]

    def _columns(self, rows: slice) -> dict[str, Any]:
        if rows == slice(None):
            return self.features
        return {name: values[rows] for name, values in self.features.items()}

    def _parts(self, residual: jets.Jet, weight: np.ndarray, p: int) -> tuple[np.ndarray, ...]:
        """The rows' share of value, gradient, Hessian and metric."""
        value, slope, curvature = self.loss(np.asarray(residual.value))
        # slope / r: the curvature of the parabola that touches a symmetric loss at r and at -r from above
        above = weight * np.divide(slope, residual.value, out=curvature + 0.0 * slope, where=residual.value != 0)
        total = np.einsum("kr,kr->k", np.broadcast_to(weight, value.shape), value)
        slope, curvature = weight * slope, weight * curvature
        first = np.zeros((len(value), p, value.shape[1]))
        for i, entry in residual.grad.items():
            first[:, i] = entry
        gradient = np.einsum("kpr,kr->kp", first, slope)
        hessian = (first * curvature[:, None]) @ first.transpose(0, 2, 1)
        for (i, j), entry in residual.hess.items():
            term = np.einsum("kr,kr->k", slope, np.broadcast_to(entry, slope.shape))
            hessian[:, i, j] += term
            if i != j:
                hessian[:, j, i] += term
        return total, gradient, hessian, (first * above[:, None]) @ first.transpose(0, 2, 1)

    def penalty(
        self, theta: np.ndarray, name: str, prior: Prior, shift: np.ndarray | float = 0.0
    ) -> tuple[np.ndarray, ...]:
        """noise * z^2 / 2, with z the distance from the prior's mean, moved by `shift` (k, 1), in its standard
        deviations."""
        parameter = next(p for p in self.law.parameters if p.name == name)
        raw = parameter.rescaled(self.centred(jets.variables(theta)), self.scale)
        distance = jets.log(raw) - np.log(prior.mean) if parameter.transform == "log" else raw - prior.mean
        z = (distance * (1.0 / prior.sd) - shift) * self.noise**0.5
        return replace(self, loss=LeastSquares())._parts(z, np.ones((1, 1)), theta.shape[1])

    def _projected(self, theta: np.ndarray, low: np.ndarray) -> np.ndarray:
        names = [name for name in self.law.linear if name in self.names]
        at = [self.names.index(name) for name in names]
        p = self.centred(list(theta.T[:, :, None]))
        for i, name in enumerate(names):
            p[name] = jets.Jet(p[name], {i: 1.0}, {})
        with np.errstate(all="ignore"):
            prediction = self.law.predict(p, self.features)
            size = self.target if self.residuals == "log" else np.full_like(self.target, self.typical)
            shape = (len(theta), len(self.target))
            size = size / np.sqrt(self.weights)
            design = np.stack([np.broadcast_to(prediction.grad[i], shape) for i in range(len(names))], axis=1) / size
            own = np.stack([np.broadcast_to(p[name].value, (len(theta), 1)) for name in names], axis=1)
            wanted = (self.target - prediction.value) / size + (design * own).sum(axis=1)
        floor = np.array([self.free_parameters[i].to_natural(low[i]) for i in at])
        bounds = np.array([self.free_parameters[i].bounds for i in at])
        positive = np.array([self.free_parameters[i].transform == "log" for i in at])
        solved = np.broadcast_to(floor, (len(theta), len(at))).copy()
        moving = np.ones_like(solved, bool)
        for _ in range(len(at)):  # non-negative least squares, dropping what turns negative
            rest = wanted - np.einsum("kpr,kp->kr", design, np.where(moving, 0.0, solved))
            part = design * moving[:, :, None]
            normal = part @ part.transpose(0, 2, 1)
            trace = np.einsum("kpp->k", normal)[:, None, None]
            normal += np.where(np.isfinite(trace) & (trace > 0), 1e-12 * trace, 1.0) * np.eye(len(at))
            normal += np.eye(len(at)) * ~moving[:, :, None]
            usable = np.isfinite(normal).all((1, 2)) & np.isfinite(rest).all(1)
            found = np.full_like(solved, np.nan)
            found[usable] = np.linalg.solve(normal[usable], (part @ rest[:, :, None])[usable])[:, :, 0]
            negative = moving & positive & ~(found > 0)
            solved = np.where(moving & ~negative & np.isfinite(found), found, np.where(moving, floor, solved))
            if not negative.any():
                break
            moving &= ~negative
        solved = np.clip(solved, bounds[:, 0], bounds[:, 1])
        theta = theta.copy()
        for column, i in enumerate(at):
            theta[:, i] = self.free_parameters[i].to_free(solved[:, column])
        return theta
