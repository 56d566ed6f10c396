"""What a small step on half of a group of units teaches the other half, and what it does to others.

Two ways to make groups, for every description of the units alike:

- *clusters*: the anchor's own cluster. Methods cut a token's units finer or coarser, and what is left outside then lies
  nearer or farther, so that figures of methods with clusters of other sizes compare with care.
- *equal sizes*: the anchor and its eleven nearest units of the same target token. All groups are of one size, all are
  drawn from the same units, and as many are left outside.

Steps are made, not extrapolated. Knows units and models of python_model.py; not which description is whose.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from python_model import Units, load
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
_AT_ONCE = 6

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


def anchors_of(groups: dict[str, Group], units: Units, num: int, rng: np.random.Generator, *, least: int) -> np.ndarray:
    """Units, drawn at random, whose group can be halved by every method and whose token has at least so many units."""
    counts = np.unique(units.target, return_inverse=True, return_counts=True)
    able = np.flatnonzero(counts[2][counts[1]] >= least)
    found: list[int] = []
    for anchor in rng.permutation(able).tolist():
        if len(found) < num and all(can_be_halved(group(anchor), units.document) for group in groups.values()):
            found.append(anchor)
    return np.array(found)


def transferring(
    units: Units, folder: Path, groups: dict[str, Group], anchors: np.ndarray, seed: int
) -> dict[str, dict[str, float]]:
    """Selectivity by method and step, over any units outside and over those of the same target token."""
    model = load(folder)
    weights = list(model.parameters())

    def losses(chosen: np.ndarray) -> Tensor:
        order = np.argsort(units.position[chosen], kind="stable")  # windows of like length, cut off alike
        parts = [order[start : start + _AT_ONCE] for start in range(0, len(order), _AT_ONCE)]
        found = torch.cat([token_losses(model, units.batch(chosen[part])) for part in parts])
        return found[torch.from_numpy(np.argsort(order))]

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
            steps = measure_steps(losses, weights, first, np.concatenate([second, same, away]), steps=[*STEPS.values()])
            for how, step in zip(STEPS, steps, strict=True):
                falls = np.split(step.falls, [len(second), len(second) + len(same)])
                spilled = [float(np.abs(part).mean()) if len(part) else np.nan for part in falls[1:]]
                sums.setdefault(how, []).append((float(falls[0].mean()), *spilled))
        own = found.setdefault(name, {})
        for how, values in sums.items():
            carried, alike, far = np.array(values).T
            own[how] = TransferTotals(carried=carried, spilled=far).selectivity
            known = np.isfinite(alike)
            if known.mean() > 0.5:
                own[f"{how}, same token"] = TransferTotals(carried=carried[known], spilled=alike[known]).selectivity
    return found
