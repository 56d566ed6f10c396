"""A series of checkpoints of one training: when each quantum of a run formed. One Ray task per checkpoint.

Losses are those of all clustered units (curves.py). Gradients are those of a few units of each quantum, computed at
every checkpoint under the run's own projection: their norms, and the effective dimension of each quantum's. What is
found lies in `emergence/<name>/` of the run, as tables that anyone can read. Over models of different sizes: sizes.py.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import isnan
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int

from ...attribution.change.emergence import (
    Emergence,
    EmergenceConfig,
    find_bursts,
    find_emergence,
    group_means,
    order_against_frequency,
)
from ...attribution.change.monogenic import monogenic_curves
from ...attribution.quanta.dimension import effective_dimension
from ...errors import ConfigurationError, RunMismatchError, RunNotFoundError
from ...storage.derived import Derived
from ...storage.run import Run
from ..collecting.config import RowConfig
from ..collecting.plan import make_engine
from ..collecting.unit_rows import Task, unit_rows
from ..exchange.importing import require_own_rows
from ..models.model import ModelSource, check_model, load_model
from ..quanta.cluster import Quanta
from ..quanta.joined import first_set
from ..workers.pool import WorkerPool
from ..workers.progress import Listener, Stage, ignore
from ..workers.ray_session import RayOptions, ray_session
from .curves import collect_curves, step_of

ROOM = "emergence"
Over = Literal["steps", "sizes"]
"""What quanta are followed over: checkpoints of one training, or models of different sizes."""
_LEAST_CHECKPOINTS = 4
_IDLE_KEYS = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")
"""Keys of config.json that may differ between checkpoints of one training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmergeConfig:
    """What is found out of a series of checkpoints."""

    quanta: str = "main"
    """The clustering whose quanta are followed."""
    units_per_quantum: int = 8
    """Units of each quantum whose gradients are computed at every checkpoint; 0 leaves gradients out."""
    transitions: EmergenceConfig = field(default_factory=EmergenceConfig)

    def __post_init__(self) -> None:
        if self.units_per_quantum < 0 or self.units_per_quantum == 1:
            raise ConfigurationError(
                f"--units-per-quantum is {self.units_per_quantum}; give 0 for no gradients, or 2 and more."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEmergence:
    """What a run keeps of the emergence of one clustering's quanta."""

    quanta: pa.Table
    """One line per quantum: its times (midpoint with interval, start, end, in training steps), drop, forgetting.

    Over sizes: in numbers of parameters, and what it adds to the fall of the whole mean loss."""
    curves: pa.Table
    """One line per quantum and checkpoint: loss, gradient_norm, effective_dimension. Over sizes, one per quantum and
    model: loss, and contribution to the mean loss of all units."""
    facts: dict[str, Any]
    """Checkpoints, steps, order against frequency (or None), bursts, how sharply units of one quantum and of several
    fall (`monogenic`, or None), the configuration. Over sizes: models, num_parameters, mean_loss, scaling, order,
    monogenic, the configuration."""


def find_checkpoints(places: Sequence[str]) -> list[str]:
    """Checkpoint folders by training step: those named, and for a folder that holds some, these.

    RunNotFoundError for a folder with none, ConfigurationError for a step that is there twice or fewer than four.
    """
    found: list[str] = []
    for place in places:
        path = Path(place)
        if path.is_dir() and not (path / "config.json").is_file():
            inner = [str(p) for p in path.iterdir() if (p / "config.json").is_file() and p.name[-1:].isdigit()]
            if not inner:
                raise RunNotFoundError(
                    f"{place} holds no checkpoints: folders with a config.json, ending in a step. Models of different "
                    "sizes are taken with --over sizes."
                )
            found += inner
        else:
            found.append(place)
    steps = [step_of(place) for place in found]
    if len(set(steps)) < len(steps):
        twice = next(s for s in steps if steps.count(s) > 1)
        both = ", ".join(place for place, step in zip(found, steps, strict=True) if step == twice)
        raise ConfigurationError(
            f"Step {twice} is given twice ({both}): checkpoints of one training are at different steps."
        )
    if len(found) < _LEAST_CHECKPOINTS:
        raise ConfigurationError(
            f"A series of {len(found)} checkpoints shows no transition; give at least {_LEAST_CHECKPOINTS}."
        )
    return [found[i] for i in np.argsort(steps)]


def emerge(
    run: Run,
    checkpoints: Sequence[ModelSource],
    ray_options: RayOptions,
    *,
    config: EmergeConfig | None = None,
    listener: Listener = ignore,
) -> StoredEmergence:
    """Follow a run's quanta over the checkpoints, store what is found, and return it.

    Checkpoints are in the order of `find_checkpoints`. RunMismatchError for checkpoints of different shapes, naming
    what differs, before anything is loaded.
    """
    config = config or EmergeConfig()
    _require_one_shape(checkpoints)
    place = place_of(run, config.quanta)
    quanta = Quanta(run, config.quanta)
    quanta.row_set.require_current()
    if config.units_per_quantum:
        require_own_rows(first_set(quanta.row_set))
    assignments = np.asarray(quanta.units["quantum"]).astype(np.int64)
    units = np.asarray(quanta.units["unit"]).astype(np.int64)
    documents = np.asarray(quanta.units["document"]).astype(np.int64)
    curves = collect_curves(run, quanta.row_set.name, checkpoints, ray_options, listener=listener)
    losses = curves.losses[units]
    found = find_emergence(losses, curves.steps, assignments, documents, config=config.transitions)
    chosen = _sample(assignments, np.asarray(quanta.units["cosine"]), config.units_per_quantum)
    norms, dimensions = None, None
    if len(chosen):
        norms, dimensions = _gradients(quanta, units[chosen], assignments[chosen], checkpoints, ray_options, listener)
    order = order_against_frequency(found, found.sizes / found.sizes.sum())
    facts = {
        "checkpoints": [source.model for source in checkpoints],
        "steps": curves.steps.tolist(),
        "order": known(asdict(order)) | {"sentence": order.sentence()} if order else None,
        "bursts": [asdict(burst) for burst in find_bursts(found, scale=config.transitions.scale)],
        "monogenic": monogenic_facts(losses, quanta, seed=config.transitions.seed),
        "config": asdict(config),
    }
    mean_norms = group_means(norms, assignments[chosen]) if norms is not None else None
    times, series = quanta_columns(found, "step"), curve_columns(found, "step")
    if mean_norms is not None and dimensions is not None:
        times["gradient_peak_step"] = found.steps[mean_norms.argmax(1)]
        series |= {"gradient_norm": mean_norms.ravel(), "effective_dimension": dimensions.ravel()}
    place.write(facts, source=quanta.fingerprint(), tables={"quanta": pa.table(times), "curves": pa.table(series)})
    return read_emergence(run, config.quanta)


def place_of(run: Run, quanta: str, over: Over = "steps") -> Derived:
    """Where the emergence of the quanta of that name lies: over sizes apart, under `<name>-sizes`.

    ConfigurationError where that of other quanta lies there: of `main` over sizes, and of some named `main-sizes`.
    """
    place = run.derived(ROOM, quanta if over == "steps" else f"{quanta}-sizes")
    if place.name.endswith("-sizes") and place.exists:
        other = place.facts()["config"]["quanta"]
        if other != quanta:
            raise ConfigurationError(
                f"{place.folder} holds the emergence of the quanta {other!r}, not of {quanta!r}. "
                "Cluster under a name that does not end in -sizes."
            )
    return place


def read_emergence(run: Run, name: str = "main", *, over: Over = "steps") -> StoredEmergence:
    """What was stored for the quanta of that name; RunMismatchError if these changed since."""
    derived = place_of(run, name, over)
    facts = derived.facts(source=run.derived("quanta", name).fingerprint())
    return StoredEmergence(quanta=derived.table("quanta"), curves=derived.table("curves"), facts=facts)


class GradientWorker:
    """Computes the gradients of some units of a run under one checkpoint after another."""

    def __init__(self, path: str, set_name: str, units: Int[np.ndarray, " some"], num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self._run = Run.open(path)
        self._set = self._run.row_set(set_name)
        self._units = units

    def gradients(
        self, checkpoint: ModelSource, quantum: Int[np.ndarray, " some"]
    ) -> tuple[Float[np.ndarray, " some"], Float[np.ndarray, " quantum"]]:
        """The norm of each unit's gradient, and the effective dimension of each quantum's; not preconditioned."""
        loaded = load_model(checkpoint)
        plan = self._set.plan
        num_parameters = sum(p.numel() for p in loaded.model.parameters())
        if num_parameters != plan["model"]["num_parameters"]:
            raise RunMismatchError(
                f"{checkpoint.model} has {num_parameters:,} parameters, the run's own model "
                f"{plan['model']['num_parameters']:,}: give checkpoints of the training that the run is of."
            )
        request = RowConfig(**plan["request"] | {"precondition": "none"})
        engine = make_engine(request, loaded, plan["projection"])[0]
        selection = self._set.selection()
        order = np.argsort(self._units, kind="stable")
        units = selection.take(pa.array(self._units[order]))
        made = unit_rows(Task(run=self._run, units=units, around=units, engine=engine, plan=plan))
        rows = np.empty_like(made.rows)
        rows[order] = made.rows
        norms = np.linalg.norm(rows.astype(np.float64), axis=1)
        unit_length = rows / np.maximum(norms, np.finfo(np.float32).tiny)[:, None]
        document = np.empty(len(order), np.int64)
        document[order] = np.asarray(units["document"])
        return norms, effective_dimension(unit_length, quantum, document).value


def _gradients(
    quanta: Quanta,
    units: np.ndarray,
    assignments: np.ndarray,
    checkpoints: Sequence[ModelSource],
    ray_options: RayOptions,
    listener: Listener,
) -> tuple[Float[np.ndarray, "unit checkpoint"], Float[np.ndarray, "quantum checkpoint"]]:
    norms: dict[int, np.ndarray] = {}
    dimensions: dict[int, np.ndarray] = {}
    stage = Stage(listener, "gradients over checkpoints", total=len(checkpoints), unit="checkpoints")
    with ray_session(ray_options) as num_workers:
        import ray

        actor = ray.remote(GradientWorker).options(
            num_cpus=ray_options.threads_per_worker, num_gpus=ray_options.gpus_per_worker
        )
        path, name = str(quanta.run.store.root), quanta.row_set.name

        def done(task: int, result: tuple[np.ndarray, np.ndarray]) -> None:
            norms[task], dimensions[task] = result
            stage.advance(1)

        with WorkerPool(lambda: actor.remote(path, name, units, ray_options.threads_per_worker), num_workers) as pool:
            pool.run(
                range(len(checkpoints)),
                lambda worker, task: worker.gradients.remote(checkpoints[task], assignments),
                on_done=done,
                what="checkpoint",
            )
    places = range(len(checkpoints))
    return np.stack([norms[i] for i in places], axis=1), np.stack([dimensions[i] for i in places], axis=1)


def _sample(assignments: np.ndarray, cosine: np.ndarray, per_quantum: int) -> np.ndarray:
    """The units nearest to each quantum's centre, at most so many, in the order of quanta."""
    order = np.lexsort((-cosine, assignments))
    ends = np.cumsum(np.bincount(assignments))[:-1]
    return np.concatenate([own[:per_quantum] for own in np.split(order, ends)])


def _require_one_shape(checkpoints: Sequence[ModelSource]) -> None:
    """RunMismatchError, naming what differs, unless all checkpoints have one configuration."""
    first: dict[str, Any] = {}
    for source in checkpoints:
        facts = check_model(source)
        text = (Path(facts.folder) / "config.json").read_text(encoding="utf-8")
        own = {k: v for k, v in json.loads(text).items() if k not in _IDLE_KEYS}
        first = first or own
        for key in sorted(set(first) | set(own)):
            if first.get(key) != own.get(key):
                raise RunMismatchError(
                    f"{source.model} has another shape than {checkpoints[0].model}: {key} is {own.get(key)!r} there, "
                    f"{first.get(key)!r} here. A series has checkpoints of one training; --over sizes takes models of "
                    "different sizes, and `quantascope compare` two of any shape."
                )


def monogenic_facts(
    losses: Float[np.ndarray, "unit checkpoint"], quanta: Quanta, *, seed: int
) -> dict[str, Any] | None:
    """How sharply units of one quantum and of several fall; None where it cannot be told."""
    if "monogenic" not in quanta.units.column_names:
        return None
    score = np.asarray(quanta.units["monogenic"], np.float64)
    document = np.asarray(quanta.units["document"]).astype(np.int64)
    found = monogenic_curves(losses, score > 1 - 1e-6, document, known=np.isfinite(score), seed=seed)
    return asdict(found) | {"sentence": found.sentence()} if found else None


def known(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts with None for NaN, which JSON has not."""
    return {name: None if isinstance(value, float) and isnan(value) else value for name, value in facts.items()}


def quanta_columns(found: Emergence, axis: str) -> dict[str, Any]:
    """The columns of the table with a line per quantum; `axis` names the unit of what they were followed over."""
    fits = found.fits
    return {
        "quantum": np.arange(len(found.sizes)),
        "size": found.sizes,
        "status": list(found.status),
        "midpoint": fits.midpoint,
        "midpoint_low": found.low,
        "midpoint_high": found.high,
        "start": fits.start,
        "end": fits.end,
        "drop": fits.drop,
        "explained": fits.explained,
        "largest_fall": found.largest_fall,
        f"largest_fall_{axis}": found.largest_fall_step,
        "forgotten": found.forgotten,
        "forgotten_low": found.forgotten_low,
        "forgotten_high": found.forgotten_high,
    }


def curve_columns(found: Emergence, axis: str) -> dict[str, Any]:
    """The columns of the table with a line per quantum and checkpoint, or model."""
    num_quanta, num_steps = found.losses.shape
    return {
        "quantum": np.repeat(np.arange(num_quanta), num_steps),
        axis: np.tile(found.steps, num_quanta),
        "loss": found.losses.ravel(),
    }
