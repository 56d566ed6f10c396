"""When a falling loss curve falls: a logistic in the logarithm of the training step, fitted to a series of checkpoints.

    L(t) ≈ high − drop · σ((x − m) / w)        x = ln t, σ the logistic function

In ln t and not in t: skills of a power law are learned at times that span orders of magnitude (Michaud et al. 2023,
arXiv 2303.13506, section 3), rare ones as much more slowly as they come later, and checkpoints are spaced to match.
`scale="linear"` fits in t. Given m and w, high and drop follow by least squares, so a grid over (m, w), followed from
its best point to ever finer ones, finds the optimum without a start to choose. The tenth and the ninetieth per cent of
the drop must lie within the series: how far a curve would still fall after the last checkpoint is not made up.

Knows curves and steps; nothing of units, models or files.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64, Int

from ...errors import ConfigurationError

Scale = Literal["log", "linear"]

_NUM_MIDPOINTS, _NUM_WIDTHS = 161, 12
_NUM_REFINED, _MOST_REFINED = 17, 400
_ROUNDS, _ZOOM = 24, 4
_EDGE = float(np.log(9))
"""σ(±ln 9) is 0.9 and 0.1: a transition lasts from 10 % of its drop to 90 %."""
_CHUNK_CELLS = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fits:
    """A transition for each curve; steps are training steps, losses in the curves' unit."""

    midpoint: Float64[np.ndarray, " curve"]
    """Step at which half of the drop is done."""
    start: Float64[np.ndarray, " curve"]
    """Step at which a tenth of it is."""
    end: Float64[np.ndarray, " curve"]
    """Step at which nine tenths are."""
    high: Float64[np.ndarray, " curve"]
    drop: Float64[np.ndarray, " curve"]
    """From `high` to the level after the transition; 0 where a curve does not fall."""
    explained: Float64[np.ndarray, " curve"]
    """R² of the fit, in [0, 1]; 0 where a curve does not fall."""
    edge: Int[np.ndarray, " curve"]
    """−1 where the fit begins at the first step, 1 where it ends at the last: perhaps only part of the fall is seen."""


class TransitionGrid:
    """Logistic curves over one series of steps, to which others are fitted."""

    def __init__(self, steps: Int[np.ndarray, " checkpoint"], scale: Scale = "log") -> None:
        """ConfigurationError for fewer than four steps, or steps that do not rise from 0 or more."""
        self.scale = scale
        self.steps = np.asarray(steps, np.float64)
        if len(steps) < 4 or (np.diff(self.steps) <= 0).any() or self.steps[0] < 0:
            raise ConfigurationError(
                f"A transition needs at least 4 checkpoints at rising steps; got {len(steps)} at "
                f"{', '.join(str(int(s)) for s in steps[:8])}{' …' if len(steps) > 8 else ''}."
            )
        if scale not in ("log", "linear"):
            raise ConfigurationError(f"scale is {scale!r}; accepted are log, linear.")
        self.x = self.position(self.steps)
        span, gap = self.x[-1] - self.x[0], float(np.diff(self.x).min())
        self._midpoints = np.linspace(self.x[0], self.x[-1], _NUM_MIDPOINTS)
        self._widths = np.geomspace(min(gap, span / 50) / 4, span / (2.2 * _EDGE), _NUM_WIDTHS)
        self._shapes, self._m, self._w = self._basis(self._midpoints, self._widths)

    def position(self, steps: Float[np.ndarray, " step"]) -> Float64[np.ndarray, " step"]:
        """Where steps lie on the axis of the fit; in ln t, step 0 lies at half of the first one after it."""
        values = np.asarray(steps, np.float64)
        if self.scale == "linear":
            return values
        first = self.steps[self.steps > 0][0]
        return np.log(np.maximum(values, first / 2))

    def step(self, position: Float[np.ndarray, " curve"]) -> Float64[np.ndarray, " curve"]:
        """The training step at a position."""
        return np.asarray(position if self.scale == "linear" else np.exp(position), np.float64)

    def midpoints(self, curves: Float[np.ndarray, "curve checkpoint"]) -> Float64[np.ndarray, " curve"]:
        """The midpoints' steps alone, for many resamples of one curve: the grid is refined once for all of them."""
        best = self._best(curves, self._shapes)[0]
        m, w = self._m[best], self._w[best]
        step_m, step_w = self._midpoints[1] - self._midpoints[0], self._widths[1] / self._widths[0]
        span = m.max() - m.min() + 2 * step_m
        count = int(np.clip(_ZOOM * span / step_m, 4 * _NUM_REFINED, _MOST_REFINED))
        near = np.linspace(m.min() - step_m, m.max() + step_m, count)
        widths = np.geomspace(w.min() / step_w, min(w.max() * step_w, self._widths[-1]), _NUM_REFINED)
        shapes, m, _ = self._basis(near, widths)
        return self.step(m[self._best(curves, shapes)[0]])

    def fit(self, curves: Float[np.ndarray, "curve checkpoint"]) -> Fits:
        """The least-squares fit of every curve, falling ones only."""
        curves = np.asarray(curves, np.float64)
        shapes, ms, ws = self._basis(*self._denser())
        best, _ = self._best(curves, shapes)
        m, w = ms[best], ws[best]
        correlation = np.zeros(len(curves))
        high, drop = curves.mean(1), np.zeros(len(curves))
        step_m = self._midpoints[1] - self._midpoints[0]
        for number, curve in enumerate(curves):
            m[number], w[number], correlation[number] = self._followed(curve, m[number], w[number])
            shape = _logistic((self.x - m[number]) / w[number])
            deviation = shape - shape.mean()
            if correlation[number] > 0:
                drop[number] = -(deviation @ curve) / (deviation @ deviation)
                high[number] = curve.mean() + drop[number] * shape.mean()
        near_edge = step_m / 2
        return Fits(
            midpoint=self.step(m),
            start=self.step(m - _EDGE * w),
            end=self.step(m + _EDGE * w),
            high=high,
            drop=drop,
            explained=np.maximum(correlation, 0) ** 2,
            edge=(m + _EDGE * w >= self.x[-1] - near_edge).astype(np.int64) - (m - _EDGE * w <= self.x[0] + near_edge),
        )

    def _denser(self) -> tuple[Float64[np.ndarray, " midpoint"], Float64[np.ndarray, " width"]]:
        """Midpoints and widths between those of the grid too: few checkpoints can leave several optima close by."""
        m, w = self._midpoints, self._widths
        return np.linspace(m[0], m[-1], 3 * len(m)), np.geomspace(w[0], w[-1], 3 * len(w))

    def _followed(self, curve: Float64[np.ndarray, " checkpoint"], m: float, w: float) -> tuple[float, float, float]:
        """The optimum near a midpoint and a width, and its correlation: grids move while their best lies on the rim."""
        span, ratio = self._midpoints[1] - self._midpoints[0], self._widths[1] / self._widths[0]
        finest, middle, correlation = span / _ZOOM**3, _NUM_REFINED // 2, -1.0
        for _ in range(_ROUNDS):
            near = m + np.linspace(-span, span, _NUM_REFINED)
            widths = np.clip(w * np.geomspace(1 / ratio, ratio, _NUM_REFINED), self._widths[0], self._widths[-1])
            shapes, ms, ws = self._basis(near, widths)
            place, found = self._best(curve[None], shapes)
            is_rim = abs(int(place[0]) // _NUM_REFINED - middle) == middle
            is_rim |= abs(int(place[0]) % _NUM_REFINED - middle) == middle
            is_better, correlation = found[0] > correlation, max(float(found[0]), correlation)
            if is_better:
                m, w = float(ms[place[0]]), float(ws[place[0]])
            if not (is_rim and is_better):
                span, ratio = span / _ZOOM, ratio ** (1 / _ZOOM)
            if span < finest:
                break
        return m, w, correlation

    def _basis(
        self, midpoints: np.ndarray, widths: np.ndarray
    ) -> tuple[Float64[np.ndarray, "shape checkpoint"], Float64[np.ndarray, " shape"], Float64[np.ndarray, " shape"]]:
        """Falling logistic shapes, centred and of unit norm, with their midpoints and widths."""
        m, w = (a.ravel() for a in np.meshgrid(midpoints, widths, indexing="ij"))
        m = np.clip(m, self.x[0] + _EDGE * w, self.x[-1] - _EDGE * w)
        shapes = -_logistic((self.x[None] - m[:, None]) / w[:, None])
        shapes -= shapes.mean(1, keepdims=True)
        norms = np.linalg.norm(shapes, axis=1, keepdims=True)
        return shapes / np.maximum(norms, 1e-12), m, w

    def _best(
        self, curves: np.ndarray, shapes: np.ndarray
    ) -> tuple[Int[np.ndarray, " curve"], Float64[np.ndarray, " curve"]]:
        """The shape that correlates most with each curve, and that correlation."""
        places, values = np.zeros(len(curves), np.int64), np.zeros(len(curves))
        size = max(1, _CHUNK_CELLS // len(shapes))
        for first in range(0, len(curves), size):
            part = curves[first : first + size]
            centred = part - part.mean(1, keepdims=True)
            norms = np.linalg.norm(centred, axis=1)
            found = centred @ shapes.T
            place = found.argmax(1)
            places[first : first + size] = place
            values[first : first + size] = found[np.arange(len(part)), place] / np.maximum(norms, 1e-300)
        return places, np.clip(values, -1, 1)


def half_way(
    curves: Float[np.ndarray, "curve checkpoint"], steps: Int[np.ndarray, " checkpoint"]
) -> Float64[np.ndarray, " curve"]:
    """Without a fit: the first step at which a curve lies half way from its first value to its least one.

    Interpolated between neighbouring steps; NaN for a curve that never falls below its first value.
    """
    result = np.full(len(curves), np.nan)
    for number, curve in enumerate(np.asarray(curves, np.float64)):
        middle = (curve[0] + curve.min()) / 2
        below = np.flatnonzero(curve <= middle)
        if curve.min() < curve[0] and len(below):
            at = int(below[0])
            share = (curve[at - 1] - middle) / (curve[at - 1] - curve[at])
            result[number] = steps[at - 1] + share * (steps[at] - steps[at - 1])
    return result


def _logistic(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -60, 60))))
