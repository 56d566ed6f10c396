"""What every subset of kinds does when trained on alone: main effects and interactions, beside the account of one run.

With v(S) what training on the kinds in S gives (weights, or losses; v(∅) is the start), the Möbius transform

    effect(S) = Σ over T ⊆ S of (−1)^(|S| − |T|) v(T)        v(S) = Σ over T ⊆ S of effect(T)

splits it into effects of single kinds and interactions (Rota 1964). An interaction shared equally among its kinds gives
Shapley's value (Shapley 1953), which adds up to v(all) − v(∅) as an account does, so that the two can be laid beside
each other: one is what kinds do in the company of all others in a random order of joining, the other what they did on
one path. 2^K trainings: small models and few kinds.

Knows numbers by subset; nothing of training.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Float64

from ...errors import ConfigurationError


def subsets(num_kinds: int) -> Iterator[tuple[int, ...]]:
    """All subsets of the kinds 0 … num_kinds − 1, in the order that the functions here take: by binary number."""
    for number in range(2**num_kinds):
        yield tuple(kind for kind in range(num_kinds) if number >> kind & 1)


def interactions(values: Float[np.ndarray, "subset *shape"]) -> Float64[np.ndarray, "subset *shape"]:
    """The Möbius transform: each subset's effect beyond those of its own subsets; the first is v(∅) itself.

    ConfigurationError unless there are 2^K values, K ≥ 1.
    """
    num_kinds = _num_kinds(values)
    found = np.array(values, np.float64)
    for kind in range(num_kinds):
        has = np.array([number >> kind & 1 for number in range(len(found))], np.bool_)
        found[has] -= found[~has]
    return found


def shapley_values(values: Float[np.ndarray, "subset *shape"]) -> Float64[np.ndarray, "kind *shape"]:
    """Each kind's share: every interaction divided equally among its kinds. They sum to v(all) − v(∅)."""
    effects = interactions(values)
    result = np.zeros((_num_kinds(values), *effects.shape[1:]))
    for subset, effect in zip(subsets(len(result)), effects, strict=True):
        for kind in subset:
            result[kind] += effect / len(subset)
    return result


def _num_kinds(values: np.ndarray) -> int:
    count = len(values).bit_length() - 1
    if len(values) < 2 or len(values) != 2**count:
        raise ConfigurationError(f"There are {len(values)} values; give one for each of the 2^K subsets of K kinds.")
    return count
