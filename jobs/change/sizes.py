"""A series of models of different sizes and one tokenizer: from which size on a model has each quantum of a run.

The axis is the number of parameters in place of the training step (emerge.py); there are no gradients, whose shapes
differ. The mean loss of all clustered units is set out as a sum over quanta at each size. One Ray task per model. What
is found lies in `emergence/<name>-sizes/` of the run, with the losses themselves, which are taken again for the same
models and units.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int64

from ...attribution.change.emergence import EmergenceConfig, find_emergence, order_against_frequency
from ...attribution.change.scaling import Scaling, decompose, fit_scaling
from ...errors import ConfigurationError, RunMismatchError, RunNotFoundError
from ...storage.checked import digest, fingerprint
from ...storage.derived import Derived
from ...storage.run import Run
from ..data.tokens import tokenizer_fingerprint
from ..hub import quiet
from ..models.model import ModelSource, check_model, load_tokenizer
from ..quanta.cluster import Quanta
from ..workers.progress import Listener, ignore
from ..workers.ray_session import RayOptions
from .emerge import StoredEmergence, curve_columns, known, monogenic_facts, place_of, quanta_columns, read_emergence
from .losses import ComparedModel, losses_under

_AXIS = "num_parameters"
_LEAST_MODELS = 4
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
_SCOPE = "Units were chosen by their loss under the run's own model: this is no law of all text."


@dataclass(frozen=True, slots=True, kw_only=True)
class SizesConfig:
    """What is found out of models of different sizes."""

    quanta: str = "main"
    """The clustering whose quanta are followed."""
    transitions: EmergenceConfig = field(default_factory=EmergenceConfig)


def find_models(places: Sequence[str]) -> list[str]:
    """Model folders: those named, and for a folder that holds some, these. RunNotFoundError for one with none."""
    found: list[str] = []
    for place in places:
        path = Path(place)
        if path.is_dir() and not (path / "config.json").is_file():
            inner = sorted(str(p) for p in path.iterdir() if _is_model(p))
            if not inner:
                raise RunNotFoundError(f"{place} holds no models: folders with a config.json and weights.")
            found += inner
        else:
            found.append(place)
    return found


def emerge_over_sizes(
    run: Run,
    models: Sequence[ModelSource],
    ray_options: RayOptions,
    *,
    config: SizesConfig | None = None,
    listener: Listener = ignore,
) -> StoredEmergence:
    """Follow a run's quanta over models by their numbers of parameters, store what is found, and return it.

    Before any model is loaded: ConfigurationError for fewer than four models, a number of parameters that two have or
    that is not known, or quanta of other units than token losses; RunMismatchError for another tokenizer than the
    run's, or a context shorter than its windows.
    """
    config = config or SizesConfig()
    place = place_of(run, config.quanta, "sizes")
    quanta = Quanta(run, config.quanta)
    models, num_parameters = _by_size(quanta, models)
    losses, computed_from = _losses(quanta, place, models, ray_options, listener)
    assignments = np.asarray(quanta.units["quantum"]).astype(np.int64)
    documents = np.asarray(quanta.units["document"]).astype(np.int64)
    found = find_emergence(losses, num_parameters, assignments, documents, config=config.transitions)
    parts = decompose(losses, assignments)
    scaling = fit_scaling(losses, num_parameters, documents, config=config.transitions)
    order = order_against_frequency(found, found.sizes / found.sizes.sum())
    facts = {
        "over": "sizes",
        "models": [source.model for source in models],
        "num_parameters": num_parameters.tolist(),
        "mean_loss": losses.mean(0, dtype=np.float64).tolist(),
        "scaling": _scaling(scaling, quanta),
        "scope": _SCOPE,
        "order": known(asdict(order)) | {"sentence": order.sentence("parameters")} if order else None,
        "monogenic": monogenic_facts(losses, quanta, seed=config.transitions.seed),
        "losses_from": computed_from,
        "config": asdict(config),
    }
    lines, series = quanta_columns(found, _AXIS), curve_columns(found, _AXIS)
    lines["fall"] = parts[:, 0] - parts[:, -1]
    series["contribution"] = parts.ravel()
    tables = {"quanta": pa.table(lines), "curves": pa.table(series)}
    place.write(facts, source=quanta.fingerprint(), tables=tables, arrays={"losses": losses})
    return read_emergence(run, config.quanta, over="sizes")


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(any(folder.glob(pattern)) for pattern in _WEIGHTS)


def _by_size(quanta: Quanta, models: Sequence[ModelSource]) -> tuple[list[ModelSource], Int64[np.ndarray, " model"]]:
    """The models by their numbers of parameters, and these; each is fit to give the quanta's units a loss."""
    plan = quanta.row_set.plan
    if plan["unit_type"] != "token-loss":
        raise ConfigurationError(
            f"Quanta {quanta.name!r} are of {plan['unit_type']} units; sizes are compared on token losses."
        )
    if len(models) < _LEAST_MODELS:
        raise ConfigurationError(
            f"A series of {len(models)} models shows no transition; give at least {_LEAST_MODELS} of different sizes."
        )
    counts = []
    for source in models:
        facts = check_model(source)
        if facts.num_parameters is None:
            raise ConfigurationError(
                f"How many parameters {source.model} has is not known without its weights: give a downloaded folder."
            )
        counts.append(facts.num_parameters)
        if facts.context_tokens is not None and facts.context_tokens < plan["window_tokens"]:
            raise RunMismatchError(
                f"{source.model} reads {facts.context_tokens} tokens, the run's windows have {plan['window_tokens']}: "
                "leave it out, or collect a run with smaller --window-tokens."
            )
        with quiet():
            tokenizer = load_tokenizer(source, Path(facts.folder), facts)
        if tokenizer_fingerprint(tokenizer) != quanta.run.manifest["config"]["tokenizer_fingerprint"]:
            raise RunMismatchError(
                f"{source.model} has another tokenizer than the run: its losses cannot be compared. "
                "A series of sizes has one tokenizer."
            )
    order = np.argsort(counts)
    for one, other in pairwise(order):
        if counts[one] == counts[other]:
            raise ConfigurationError(
                f"{models[one].model} and {models[other].model} both have {counts[one]:,} parameters: models of a "
                "series differ in size. Checkpoints of one training are followed without --over sizes."
            )
    return [models[i] for i in order], np.sort(np.array(counts, np.int64))


def _losses(
    quanta: Quanta, place: Derived, models: Sequence[ModelSource], ray_options: RayOptions, listener: Listener
) -> tuple[Float32[np.ndarray, "unit model"], str]:
    """Each clustered unit's loss under each model, in nats, and the fingerprint of what they are of."""
    columns = [np.asarray(quanta.units[c]).astype(np.int64) for c in ("document", "first_token", "last_token")]
    keys = np.stack(columns, axis=1)
    computed_from = fingerprint([digest(keys.tobytes()), [(s.model, s.revision, s.dtype) for s in models]])
    if place.exists and place.facts()["losses_from"] == computed_from:
        return place.array("losses"), computed_from
    named = {source.model: ComparedModel(source=source) for source in models}
    found = losses_under(quanta.run, keys, named, ray_options, listener)
    return np.stack([found[name] for name in named], axis=1), computed_from


def _scaling(scaling: Scaling, quanta: Quanta) -> dict[str, Any]:
    """The fit as facts, beside how this run's frequencies fall with rank."""
    measured = quanta.facts.get("rank_frequency")
    sentence = scaling.sentence()
    if measured:
        sentence += (
            f"; this run's quanta have frequency ∝ rank^{measured['slope']:.2f} "
            f"({measured['slope_low']:.2f} to {measured['slope_high']:.2f})"
        )
    return known(asdict(scaling)) | {
        "expected_rank_slope": scaling.expected_rank_slope,
        "expected_order_slope": scaling.expected_order_slope,
        "rank_slope": measured["slope"] if measured else None,
        "sentence": sentence,
    }
