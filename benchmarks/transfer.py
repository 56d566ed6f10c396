"""What a small step on half of a group of units teaches the other half, and what it does to others.

Two ways to make groups, for every description of the units alike:

- *clusters*: the anchor's own cluster. Methods cut a token's units finer or coarser, and what is left outside then lies
  nearer or farther, so that figures of methods with clusters of other sizes compare with care.
- *equal sizes*: the anchor and its eleven nearest units of the same target token. All groups are of one size, all are
  drawn from the same units, and as many are left outside.

Steps are made, with few anchors, or their effect is taken to first order, with all: the inner product of the step's
gradients with each unit's own, from rows under a projection of their own, so that no description is judged by the noise
that it was found with. *Of what is possible* divides each unit's fall by the greatest that a step of that length could
bring it: whoever puts units together that any step moves far gains nothing there.

Knows units and models of python_model.py; not which description is whose.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from python_model import Units, load, rows_of
from torch import Tensor

from quantascope.attribution.learning import TransferTotals, measure_steps, split_documents
from quantascope.attribution.losses import token_losses

STEPS = {"step 0.0003": (None, 0.0003), "step 0.003": (None, 0.003), "sign step 0.001": (torch.sign, 0.001)}
"""Direction and length of a step, relative to the norm of all weights; signs are the first step of Adam."""
MAX_HALF, MIN_HALF = 6, 4
"""Units of half a group."""
GROUP = 12
"""Units of a group of equal size."""
NUM_OUTSIDE, NUM_SAME = 12, 12
"""Units outside whose losses are measured: any, and of the same target token."""
_AT_ONCE, _OTHER_SEED = 6, 1

Group = Callable[[int], np.ndarray]
"""From an anchor to the units of its group, itself among them."""


def of_labels(labels: np.ndarray) -> Group:
    """Clusters."""
    return lambda anchor: np.flatnonzero(labels == labels[anchor])


def of_nearest(similar: Callable[[int], np.ndarray], units: Units) -> Group:
    """The anchor and what is most similar to it (`similar` gives all units' similarity) among its target token."""

    def group(anchor: int) -> np.ndarray:
        pool = np.flatnonzero(units.target == units.target[anchor])
        values = similar(anchor)[pool].astype(np.float64)
        values[pool == anchor] = np.inf
        return np.sort(pool[np.argsort(-values, kind="stable")[:GROUP]])

    return group


def can_be_halved(members: np.ndarray, document: np.ndarray) -> bool:
    """Whether there are two halves of other documents, of some units each."""
    own = np.sort(np.unique(document[members], return_counts=True)[1])[::-1]
    return bool(len(own) >= 2 and own.sum() >= 2 * MIN_HALF and own[1:].sum() >= MIN_HALF)


def anchors_of(groups: dict[str, Group], units: Units, rng: np.random.Generator, *, least: int) -> np.ndarray:
    """Units in random order whose group can be halved by every method, and whose token has at least so many units."""
    counts = np.unique(units.target, return_inverse=True, return_counts=True)
    able = rng.permutation(np.flatnonzero(counts[2][counts[1]] >= least)).tolist()
    return np.array(
        [a for a in able if all(can_be_halved(group(a), units.document) for group in groups.values())], dtype=np.int64
    )


Falls = Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]
"""From the units of a step, and others, to the falls of the others' log loss, by what the step is called."""


def transferring(
    units: Units, groups: dict[str, Group], anchors: np.ndarray, seed: int, falls_of: Falls
) -> dict[str, dict[str, float]]:
    """Selectivity by method and step, over any units outside and over those of the same target token."""
    windows = np.random.default_rng(seed).permutation(np.unique(units.window))[: NUM_OUTSIDE // 3]
    panel = np.flatnonzero(np.isin(units.window, windows))[:NUM_OUTSIDE]
    found: dict[str, dict[str, float]] = {}
    for name, group in groups.items():
        sums: dict[str, list[tuple[float, float, float]]] = {}
        for anchor in anchors.tolist():
            drawn = np.random.default_rng([seed, anchor])
            members = group(anchor)
            first, second = split_documents(members, units.document[members], drawn, max_units=MAX_HALF)
            away = np.setdiff1d(panel, members)
            same = np.setdiff1d(np.flatnonzero(np.isin(units.target, units.target[second])), members)
            same = np.sort(drawn.permutation(same)[:NUM_SAME])
            for how, falls in falls_of(first, np.concatenate([second, same, away])).items():
                parts = np.split(falls, [len(second), len(second) + len(same)])
                spilled = [float(np.abs(part).mean()) if len(part) else np.nan for part in parts[1:]]
                sums.setdefault(how, []).append((float(parts[0].mean()), *spilled))
        own = found.setdefault(name, {})
        for how, values in sums.items():
            carried, alike, far = np.array(values).T
            own[how] = TransferTotals(carried=carried, spilled=far).selectivity
            known = np.isfinite(alike)
            if known.mean() > 0.5:
                own[f"{how}, same token"] = TransferTotals(carried=carried[known], spilled=alike[known]).selectivity
    return found


def by_steps(units: Units, folder: Path) -> Falls:
    """Steps along all weights of a checkpoint, made and taken back."""
    model = load(folder)
    weights = list(model.parameters())

    def losses(chosen: np.ndarray) -> Tensor:
        order = np.argsort(units.position[chosen], kind="stable")  # windows of like length, cut off alike
        parts = [order[start : start + _AT_ONCE] for start in range(0, len(order), _AT_ONCE)]
        found = torch.cat([token_losses(model, units.batch(chosen[part])) for part in parts])
        return found[torch.from_numpy(np.argsort(order))]

    def falls(first: np.ndarray, others: np.ndarray) -> dict[str, np.ndarray]:
        steps = measure_steps(losses, weights, first, others, steps=[*STEPS.values()])
        return {how: step.falls for how, step in zip(STEPS, steps, strict=True)}

    return falls


def to_first_order(units: Units, folder: Path) -> Falls:
    """Inner products of gradients of all weights, sketched anew; steps have length 1."""
    rows, _, _ = rows_of(load(folder), units.ids, (units.window, units.position), projection_seed=_OTHER_SEED)
    products = (rows @ rows.T).astype(np.float64)
    norms = np.sqrt(np.diag(products))
    losses = np.exp(units.curves[:, -1])

    def falls(first: np.ndarray, others: np.ndarray) -> dict[str, np.ndarray]:
        along = products[np.ix_(first, others)].mean(axis=0) / np.sqrt(products[np.ix_(first, first)].mean())
        return {"first order": along / losses[others], "first order, of what is possible": along / norms[others]}

    return falls
