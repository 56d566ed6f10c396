"""Do units that use one quantum fall at once, and those that use several by and by?

Michaud et al. (arXiv 2303.13506, section 4) call a sample monogenic where one quantum decides its loss, whose curve
over scale or training should then have one sharp fall, and polygenic where several do, each with a fall of its own.
Sharpness is the share of a unit's whole fall that lies between two neighbouring checkpoints. Noise and the checkpoints'
distances bear on it too, so that only its difference between the two kinds of units says something, beside what the
same units give when the kinds are dealt out anew. Knows losses over units and checkpoints, and which units use one
quantum.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from ...errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class MonogenicCurves:
    """Mean sharpness of the two kinds of units, and how far apart they are; all in shares of a unit's fall."""

    one: float
    """Of units that use one quantum."""
    several: float
    difference: float
    """One less several: above 0 as the theory has it."""
    low: float
    """2.5th and 97.5th percentile over resampled documents."""
    high: float
    null_low: float
    """1st and 99th percentile with the kinds dealt out anew among the units."""
    null_high: float
    num_one: int
    num_several: int
    num_left_out: int
    """Units whose loss falls by less than the least fall, or whose kind is not known."""

    def sentence(self) -> str:
        """The result beside its null, as plain words."""
        return (
            f"largest single fall of units that use one quantum {self.one:.1%} of the whole, of several "
            f"{self.several:.1%}: {100 * self.difference:+.1f} points (95 % interval {100 * self.low:+.1f} to "
            f"{100 * self.high:+.1f}; kinds shuffled {100 * self.null_low:+.1f} to {100 * self.null_high:+.1f}), "
            f"{self.num_one:,} and {self.num_several:,} units, {self.num_left_out:,} left out"
        )


def sharpness(losses: Float[np.ndarray, "unit checkpoint"], *, least_fall: float = 0.1) -> Float64[np.ndarray, " unit"]:
    """Greatest fall between neighbouring checkpoints over the fall from the first to the least, in (0, ∞).

    NaN where the whole fall is below `least_fall` (nats), which noise would decide. Above 1 where a loss rose first.
    """
    losses = np.asarray(losses, np.float64)
    whole = losses[:, 0] - losses.min(axis=1)
    largest = -np.diff(losses, axis=1).min(axis=1)
    return np.divide(largest, whole, out=np.full(len(losses), np.nan), where=whole >= least_fall)


def monogenic_curves(
    losses: Float[np.ndarray, "unit checkpoint"],
    uses_one: Bool[np.ndarray, " unit"],
    document: Int[np.ndarray, " unit"],
    *,
    known: Bool[np.ndarray, " unit"] | None = None,
    num_resamples: int = 1_000,
    seed: int = 0,
) -> MonogenicCurves | None:
    """Compare the sharpness of units that use one quantum with that of the others.

    None where a kind has no units, or all are of one document: there is no interval then. `known` leaves units out
    whose kind is not known. Deterministic for a seed. ConfigurationError for arrays that do not fit each other, or
    fewer than three checkpoints: with two, every fall is at once.
    """
    if losses.ndim != 2 or losses.shape[1] < 3 or not len(losses) == len(uses_one) == len(document):
        raise ConfigurationError(
            f"losses of the shape {losses.shape} for {len(uses_one)} kinds and {len(document)} documents; give a line "
            "per unit and at least three checkpoints"
        )
    values = sharpness(losses)
    counts = np.isfinite(values) & (np.ones(len(values), bool) if known is None else known)
    values, one = values[counts], uses_one[counts]
    names, place = np.unique(document[counts], return_inverse=True)
    if not one.any() or one.all() or len(names) < 2:
        return None
    sums = np.zeros((len(names), 4))
    np.add.at(sums, place, np.stack([one * values, one, ~one * values, ~one], axis=1))
    chance = np.random.default_rng(seed)
    draws = chance.multinomial(len(names), np.full(len(names), 1 / len(names)), size=num_resamples) @ sums
    has_both = (draws[:, 1] > 0) & (draws[:, 3] > 0)
    resampled = draws[has_both, 0] / draws[has_both, 1] - draws[has_both, 2] / draws[has_both, 3]
    null = [_difference(values, chance.permutation(one)) for _ in range(num_resamples)]
    return MonogenicCurves(
        one=float(values[one].mean()),
        several=float(values[~one].mean()),
        difference=_difference(values, one),
        low=float(np.percentile(resampled, 2.5)),
        high=float(np.percentile(resampled, 97.5)),
        null_low=float(np.percentile(null, 1)),
        null_high=float(np.percentile(null, 99)),
        num_one=int(one.sum()),
        num_several=int((~one).sum()),
        num_left_out=int(len(counts) - counts.sum()),
    )


def _difference(values: np.ndarray, one: np.ndarray) -> float:
    return float(values[one].mean() - values[~one].mean())
