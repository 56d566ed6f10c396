"""What quanta are worth beside other groupings of the same units: by words, by activations, by chance.

Joins attribution's measures and rivals to a run. Rivals that are made of rows have as many groups as there are quanta.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float32, Int

from ...attribution.quanta.evidence import next_token_evidence, role_evidence, role_information
from ...attribution.quanta.rivals import cluster_alike, tfidf_rows
from ...attribution.quanta.stability import random_directions
from ...attribution.whitening import Whitener
from ...errors import ConfigurationError, RunMismatchError
from ...storage.run import Run
from ..collecting.unit_rows import batch_ids
from ..models.model import LoadedModel, ModelSource, load_model
from .clustered import Quanta
from .contexts import Contexts
from .joined import is_token_loss

_CONTEXT_TOKENS = 32
_BATCH_WINDOWS = 8
_MAX_ROWS = 20_000
"""More units are not clustered again for rivals of rows."""

Roles = Callable[[Run, pa.Table], Int[np.ndarray, " unit"]]
"""True labels that equal tokens may differ in (a syntactic role, say), as codes; −1 where there is none."""


def checkpoint_of(quanta: Quanta) -> ModelSource:
    """Where the checkpoint lay that the rows were taken at."""
    model = quanta.row_set.plan["model"]
    return ModelSource(model=model["name"], revision=model["revision"], dtype=model["dtype"])


def measure(
    quanta: Quanta, *, roles: Roles | None = None, num_shuffles: int = 200, model: ModelSource | None = None
) -> dict[str, Any]:
    """Evidence for the quanta beside rivals and shuffles; stored, and returned.

    Rivals: clusters by target token, by previous token, of tf–idf vectors of the last 32 tokens, of random directions,
    and, where `model` says where the checkpoint lies, of its hidden states. Where units are of several types, token
    losses alone are asked. RunMismatchError for another checkpoint.
    """
    asked = is_token_loss(quanta.units, quanta.row_set.plan)
    asked = asked if asked.any() else np.ones(len(asked), dtype=bool)
    document = np.asarray(quanta.units["document"])[asked]
    contexts = Contexts(quanta.run)
    every_target = contexts.token_ids(quanta.units)
    target = every_target[asked]
    role = roles(quanta.run, quanta.units)[asked] if roles else None
    rows = []
    for name, every in _groupings(quanta, contexts, every_target, model).items():
        clusters = every[asked]
        row: dict[str, Any] = {"name": name, "num_clusters": len(np.unique(clusters))}
        if name != "target token":
            row["next_token"] = asdict(next_token_evidence(clusters, target, document, num_shuffles=num_shuffles))
        if role is not None:
            row |= _role_evidence(clusters, target, role, document, num_shuffles=num_shuffles)
        rows.append(row)
    facts = {"num_shuffles": num_shuffles, "rows": rows}
    quanta.run.derived("evidence", quanta.name).write(facts, source=quanta.fingerprint())
    return facts


def _groupings(
    quanta: Quanta, contexts: Contexts, target: np.ndarray, model: ModelSource | None
) -> dict[str, np.ndarray]:
    units = quanta.units
    found = {
        "quanta": np.asarray(units["quantum"]),
        "target token": target,
        "previous token": contexts.token_ids(units, offset=1),
    }
    if len(units) > _MAX_ROWS:
        return found
    num_quanta, seed = len(quanta.table), int(quanta.facts["config"]["whitening"]["seed"])
    before = [_tokens_before(contexts, *line) for line in zip(*_places(units), strict=True)]
    found["words before (tf–idf)"] = cluster_alike(tfidf_rows(before, seed=seed), num_quanta, seed=seed)
    noise = random_directions(len(units), quanta.centroids.shape[1], seed=seed)
    found["random directions"] = cluster_alike(noise, num_quanta, seed=seed)
    if model is not None:
        for layer, rows in unit_activations(quanta, load_model(model)).items():
            found[f"activations, layer {layer}"] = cluster_alike(Whitener.fit(rows).apply(rows), num_quanta, seed=seed)
    return found


def _places(units: pa.Table) -> list[list[int]]:
    return [units[c].to_pylist() for c in ("document", "first_token", "last_token")]


def _tokens_before(contexts: Contexts, document: int, first: int, last: int) -> np.ndarray:
    return np.asarray(contexts.document(document).tokens[max(first, last - _CONTEXT_TOKENS) : last])


@torch.no_grad()
def unit_activations(quanta: Quanta, loaded: LoadedModel) -> dict[int, Float32[np.ndarray, "unit width"]]:
    """Hidden states that predict each unit's token (at the position before it), of the middle and of the last layer.

    Less their mean over the units. Raises RunMismatchError for another checkpoint, ConfigurationError for a model that
    gives no hidden states.
    """
    plan = quanta.row_set.plan
    if loaded.fingerprint != plan["model"]["fingerprint"]:
        raise RunMismatchError(
            f"{loaded.facts.name} is not the checkpoint that the rows were taken at: activations are left out."
        )
    if plan["unit_type"] != "token-loss":
        raise ConfigurationError(f"activations are taken for token-loss units; these are {plan['unit_type']} units")
    document, first, last = (np.asarray(c, np.int64) for c in _places(quanta.units))
    keys, window = np.unique(np.stack([document, first], axis=1), axis=0, return_inverse=True)
    window, length = window.reshape(-1), int((last - first).max()) + 1
    rows: dict[int, np.ndarray] = {}
    for start in range(0, len(keys), _BATCH_WINDOWS):
        spans = [(int(d), int(f), int(f) + length) for d, f in keys[start : start + _BATCH_WINDOWS]]
        units = np.flatnonzero((window >= start) & (window < start + len(spans)))
        states = _hidden_states(loaded, batch_ids(quanta.run, spans, length, loaded.model.device))
        for layer in sorted({len(states) // 2, len(states) - 1}):
            values = states[layer][window[units] - start, (last - first)[units] - 1].float().cpu().numpy()
            rows.setdefault(layer, np.zeros((len(document), values.shape[1]), np.float32))[units] = values
    return {layer: values - values.mean(axis=0) for layer, values in rows.items()}


def _hidden_states(loaded: LoadedModel, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    model: Any = loaded.model
    states = model(input_ids=ids, output_hidden_states=True).hidden_states
    if not states:
        raise ConfigurationError(f"{loaded.facts.name} gives no hidden states: activations cannot be compared.")
    return tuple(states)


def _role_evidence(
    clusters: np.ndarray, target: np.ndarray, role: np.ndarray, document: np.ndarray, *, num_shuffles: int
) -> dict[str, Any]:
    """Both figures on roles; nothing where no target token has two roles and enough units to tell them apart."""
    has = role >= 0
    try:
        found = role_evidence(clusters[has], target[has], role[has], document[has], num_shuffles=num_shuffles)
    except ConfigurationError:
        return {}
    return {"role": asdict(found), "role_information": role_information(clusters[has], target[has], role[has])}
