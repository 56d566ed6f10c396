"""Each unit's loss at every checkpoint of a training run: when its skill was learned. One Ray task per checkpoint."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float32, Int

from ...attribution.losses import TokenBatch, token_losses
from ...errors import ConfigurationError, RunMismatchError
from ...storage.rowset import RowSet
from ...storage.run import Run
from ..collecting.unit_rows import batch_ids
from ..models.model import LoadedModel, ModelSource, check_model, load_model
from ..quanta.joined import JoinedRows, open_rows
from ..workers.pool import WorkerPool
from ..workers.progress import Listener, Stage, ignore
from ..workers.ray_session import RayOptions, ray_session

_BATCH_WINDOWS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """Losses of a row set's units over checkpoints."""

    steps: Int[np.ndarray, " checkpoint"]
    """Training step of each checkpoint, rising."""
    losses: Float32[np.ndarray, "unit checkpoint"]
    """Nats."""


def collect_curves(
    run: Run,
    set_name: str,
    checkpoints: Sequence[ModelSource],
    ray_options: RayOptions,
    *,
    listener: Listener = ignore,
) -> Curves:
    """Compute and store the curves of a token-loss row set; what is stored for the same checkpoints is reused.

    Checkpoints are folders whose names end in the training step. ConfigurationError for a name that does not.
    """
    steps = [step_of(source.model) for source in checkpoints]
    order = np.argsort(steps)
    checkpoints = [checkpoints[i] for i in order]
    for source in checkpoints:
        check_model(source)
    row_set = open_rows(run, set_name)
    if isinstance(row_set, JoinedRows) or row_set.plan["unit_type"] != "token-loss":
        raise ConfigurationError(
            f"Row set {set_name!r} has {row_set.plan['unit_type']} units; curves need one set of token losses."
        )
    names = [source.model for source in checkpoints]
    derived = run.derived("curves", set_name)
    if derived.exists and derived.facts(source=row_set.fingerprint())["checkpoints"] == names:
        return load_curves(run, set_name)
    columns: dict[int, np.ndarray] = {}
    stage = Stage(listener, "losses over checkpoints", total=len(checkpoints), unit="checkpoints")
    with ray_session(ray_options) as num_workers:
        import ray

        actor = ray.remote(CurveWorker).options(
            num_cpus=ray_options.threads_per_worker, num_gpus=ray_options.gpus_per_worker
        )

        def done(task: int, losses: np.ndarray) -> None:
            columns[task] = losses
            stage.advance(1)

        arguments = (str(run.store.root), set_name, ray_options.threads_per_worker)
        with WorkerPool(lambda: actor.remote(*arguments), num_workers) as pool:
            pool.run(
                range(len(checkpoints)),
                lambda worker, task: worker.losses.remote(checkpoints[task]),
                on_done=done,
            )
    losses = np.stack([columns[i] for i in range(len(checkpoints))], axis=1)
    derived.write(
        {"checkpoints": names, "steps": [int(steps[i]) for i in order]},
        source=row_set.fingerprint(),
        arrays={"losses": losses},
    )
    return load_curves(run, set_name)


def load_curves(run: Run, set_name: str) -> Curves:
    """What `collect_curves` stored; RunNotFoundError if it did not, RunMismatchError if the rows changed since."""
    derived = run.derived("curves", set_name)
    facts = derived.facts(source=run.row_set(set_name).fingerprint())
    return Curves(steps=np.array(facts["steps"], np.int64), losses=derived.array("losses"))


def step_of(folder: str) -> int:
    """The number that a checkpoint folder's name ends in."""
    match = re.search(r"(\d+)$", Path(folder).name)
    if match is None:
        raise ConfigurationError(
            f"{folder}: a checkpoint's folder name must end in its training step (checkpoint-480)."
        )
    return int(match.group(1))


class CurveWorker:
    """Computes the losses of all units of a row set under one checkpoint after another."""

    def __init__(self, path: str, set_name: str, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self._run = Run.open(path)
        self._set = self._run.row_set(set_name)

    def losses(self, checkpoint: ModelSource) -> np.ndarray:
        """Loss in nats of each unit, [unit] float32."""
        return unit_losses(self._run, self._set, load_model(checkpoint))


def unit_losses(run: Run, row_set: RowSet, loaded: LoadedModel) -> Float32[np.ndarray, " unit"]:
    """Each token-loss unit's loss under a model with the run's tokenizer."""
    return losses_of(run, row_set.selection(), loaded)


@torch.no_grad()
def losses_of(run: Run, units: pa.Table, loaded: LoadedModel) -> Float32[np.ndarray, " unit"]:
    """The same of any lines with document, first_token and last_token."""
    if loaded.tokenizer_fingerprint != run.manifest["config"]["tokenizer_fingerprint"]:
        raise RunMismatchError(
            f"{loaded.facts.name} has another tokenizer than the run: its losses cannot be compared."
        )
    columns: list[Any] = [np.asarray(units[c]) for c in ("document", "first_token", "last_token")]
    document, first, last = columns
    keys, window = np.unique(np.stack([document, first], axis=1), axis=0, return_inverse=True)
    window = window.reshape(-1)
    needed = np.zeros(len(keys), np.int64)
    np.maximum.at(needed, window, last - first + 1)
    result = np.empty(len(units), np.float32)
    device = loaded.model.device
    order = np.argsort(-needed, kind="stable")
    for start in range(0, len(order), _BATCH_WINDOWS):
        chosen = order[start : start + _BATCH_WINDOWS]
        length = int(needed[chosen].max())
        place = np.full(len(keys), -1)
        place[chosen] = np.arange(len(chosen))
        unit = np.flatnonzero(place[window] >= 0)
        spans = [(int(keys[w, 0]), int(keys[w, 1]), int(keys[w, 1]) + length) for w in chosen]
        batch = TokenBatch(
            ids=batch_ids(run, spans, length, device),
            example=torch.from_numpy(place[window[unit]]).to(device),
            position=torch.from_numpy((last - first)[unit].astype(np.int64)).to(device),
        )
        result[unit] = token_losses(loaded.model, batch).float().cpu().numpy()
    return result
