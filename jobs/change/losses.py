"""The loss of the same units under several models, each perhaps without a part of it: one Ray task per model.

Knows models and token positions; nothing of quanta.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float32, Int64

from ...attribution.change.lesions import lesioned
from ...errors import ConfigurationError, RunMismatchError, RunNotFoundError
from ...storage.run import Run
from ..models.model import ModelSource, load_model
from ..workers.pool import WorkerPool
from ..workers.progress import Listener, Stage
from ..workers.ray_session import RayOptions, ray_session
from .curves import losses_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedModel:
    """A model that units get a loss under."""

    source: ModelSource
    fingerprint: str | None = None
    """What its weights must be, where a run says so."""
    lesion: str | None = None


def model_of(place: str, *, dtype: str, device: str, set_name: str | None = None) -> ComparedModel:
    """The model of a run's row set, or the checkpoint in a folder (or on the hub)."""
    if not Run.exists(place):
        if Path(place).is_dir() and not (Path(place) / "config.json").is_file():
            raise RunNotFoundError(f"{place} is neither a run nor a checkpoint: it has no manifest and no config.json.")
        return ComparedModel(source=ModelSource(model=place, dtype=dtype, device=device))
    plan = Run.open(place).row_set(set_name).plan
    source = ModelSource(
        model=plan["model"]["name"], revision=plan["model"]["revision"], dtype=plan["model"]["dtype"], device=device
    )
    return ComparedModel(source=source, fingerprint=plan["model"]["fingerprint"])


def losses_under(
    run: Run,
    keys: Int64[np.ndarray, "unit 3"],
    models: Mapping[str, ComparedModel],
    ray_options: RayOptions,
    listener: Listener,
) -> dict[str, Float32[np.ndarray, " unit"]]:
    """Each unit's loss in nats; units are (document, first token, last token) of the run."""
    names = list(models)
    found: dict[str, np.ndarray] = {}
    stage = Stage(listener, "losses under each model", total=len(names), unit="models")
    with ray_session(ray_options) as num_workers:
        import ray

        actor = ray.remote(LossWorker).options(
            num_cpus=ray_options.threads_per_worker, num_gpus=ray_options.gpus_per_worker
        )
        path = str(run.store.root)

        def done(task: int, losses: np.ndarray) -> None:
            found[names[task]] = losses
            stage.advance(1)

        with WorkerPool(lambda: actor.remote(path, keys, ray_options.threads_per_worker), num_workers) as pool:
            pool.run(
                range(len(names)),
                lambda worker, task: worker.losses.remote(models[names[task]]),
                on_done=done,
                what="model",
            )
    return found


class LossWorker:
    """Computes the losses of some tokens of a run under one model after another."""

    def __init__(self, path: str, keys: Int64[np.ndarray, "unit 3"], num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self._run = Run.open(path)
        columns = ("document", "first_token", "last_token")
        self._units = pa.table({name: pa.array(keys[:, i]) for i, name in enumerate(columns)})

    def losses(self, model: ComparedModel) -> Float32[np.ndarray, " unit"]:
        """Loss in nats of each unit."""
        loaded = load_model(model.source)
        if model.fingerprint not in (None, loaded.fingerprint):
            raise RunMismatchError(
                f"{model.source.model} has fingerprint {loaded.fingerprint[:12]}…, its run was collected with "
                f"{str(model.fingerprint)[:12]}…: the checkpoint changed since."
            )
        if model.lesion is None:
            found = losses_of(self._run, self._units, loaded)
        else:
            with lesioned(loaded.model, model.lesion):
                found = losses_of(self._run, self._units, loaded)
        if not np.isfinite(found).all():
            raise ConfigurationError(
                f"{model.source.model}{f' without {model.lesion}' if model.lesion else ''} gives "
                f"{int((~np.isfinite(found)).sum())} units a loss that is not finite; it cannot be compared."
            )
        return found
