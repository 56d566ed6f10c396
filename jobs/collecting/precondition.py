"""What a row set's gradients are preconditioned with: measured once, kept beside its plan, read by every worker.

Kronecker factors come from a sample of the set's units; a second moment comes from the checkpoint's optimiser, and is
kept as what the projection needs of it.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...attribution.blocks import Block
from ...attribution.engine import Batch, GradientRows, Losses
from ...attribution.preconditioning import (
    FactorMeter,
    Kronecker,
    KroneckerFactors,
    RankOne,
    SecondMoment,
    block_moments,
    factorisation_error,
)
from ...attribution.projection import Projection
from ...errors import DamagedRunError
from ...storage.rowset import RowSet
from ...storage.run import Run
from ...storage.selection import StoredSelection
from ..models.model import LoadedModel
from ..models.optimizer_state import read_moments
from .unit_rows import Task, unit_rows

FACTORS_FILE = "factors.npz"
_SAMPLE_UNITS = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KeptMoments:
    """A second moment, block by block: in full where it divides exactly, else its row and column sums."""

    epsilon: float
    moments: Mapping[str, Tensor | RankOne]

    def to_arrays(self) -> dict[str, np.ndarray]:
        """By name, for storing; `from_arrays` is the inverse."""
        arrays = {"epsilon": np.asarray(self.epsilon)}
        for name, moment in self.moments.items():
            if isinstance(moment, Tensor):
                arrays[f"{name}/whole"] = moment.cpu().numpy()
            else:
                arrays[f"{name}/rows"] = moment.rows.cpu().numpy()
                arrays[f"{name}/columns"] = moment.columns.cpu().numpy()
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "KeptMoments":
        """What `to_arrays` gave."""
        moments: dict[str, Tensor | RankOne] = {}
        for key in arrays:
            name, _, part = key.rpartition("/")
            if part == "whole":
                moments[name] = torch.from_numpy(np.array(arrays[key]))
            elif part == "rows":
                rows, columns = (torch.from_numpy(np.array(arrays[f"{name}/{p}"])) for p in ("rows", "columns"))
                moments[name] = RankOne(rows=rows, columns=columns)
        return cls(epsilon=float(arrays["epsilon"]), moments=moments)


Factors = KroneckerFactors | KeptMoments


def preconditioned(base: Projection, factors: Factors | None) -> Projection:
    """The projection of preconditioned gradients."""
    if factors is None:
        return base
    if isinstance(factors, KroneckerFactors):
        return Kronecker(base=base, factors=factors)
    return SecondMoment(base=base, moments=factors.moments, epsilon=factors.epsilon)


def measure_factors(
    run: Run, selection: StoredSelection, plan: dict[str, Any], loaded: LoadedModel, blocks: tuple[Block, ...]
) -> Factors:
    """What the plan's preconditioner needs.

    Kronecker factors are those of at most 256 units, evenly spaced over the selection, each by its own loss; or of
    another row set of the run that has the same sample of the same model.
    """
    if plan["preconditioner"] == "second-moment":
        return kept_moments(loaded, blocks, plan)[0]
    sample = _sample(selection)
    if shared := _shared_factors(run, sample, plan):
        return shared
    meter = _MeteredEngine(loaded, blocks)
    unit_rows(Task(run=run, units=sample, around=sample, engine=meter, plan=plan))  # type: ignore[arg-type]  # has what unit_rows asks of an engine
    return meter.meter.factors()


def kept_moments(
    loaded: LoadedModel, blocks: tuple[Block, ...], plan: dict[str, Any]
) -> tuple[KeptMoments, dict[str, float]]:
    """The optimiser's second moment, as the plan's rows need it; and each block's `factorisation_error`, 0 if exact.

    Raises ConfigurationError where the checkpoint has none for a chosen block.
    """
    found = read_moments(loaded)
    kept: dict[str, Tensor | RankOne] = {}
    errors = {}
    widths = {b["name"]: b["last_column"] - b["first_column"] + 1 for b in plan["blocks"]}
    by_block = block_moments(blocks, found.moments)
    for block in blocks:
        moment = by_block[block.name]
        is_exact = block.rows == 1 or widths[block.name] >= block.numel
        kept[block.name] = moment if is_exact else RankOne.of(moment, found.epsilon)
        errors[block.name] = 0.0 if is_exact else factorisation_error(moment, found.epsilon)
    return KeptMoments(epsilon=found.epsilon, moments=kept), errors


def encode_factors(factors: Factors) -> bytes:
    """As a NumPy archive."""
    buffer = io.BytesIO()
    np.savez(buffer, **factors.to_arrays())  # type: ignore[arg-type]  # its stubs take the names for its own options
    return buffer.getvalue()


def stored_factors(row_set: RowSet) -> Factors | None:
    """The factors that the row set's plan came with, if it has any."""
    if row_set.plan["preconditioner"] == "none":
        return None
    kind = KeptMoments if row_set.plan["preconditioner"] == "second-moment" else KroneckerFactors
    with np.load(io.BytesIO(row_set.read(FACTORS_FILE)), allow_pickle=False) as arrays:
        return kind.from_arrays(dict(arrays))


def _sample(selection: StoredSelection) -> Any:  # noqa: ANN401 - an Arrow table, which has no types
    count = min(_SAMPLE_UNITS, len(selection))
    return selection.take(np.arange(count) * len(selection) // count)


def _shared_factors(run: Run, sample: Any, plan: dict[str, Any]) -> KroneckerFactors | None:  # noqa: ANN401 - see _sample
    """Factors of a row set whose sample, model, blocks and losses are these: no number would differ but by rounding."""
    for name in run.row_sets():
        other = run.row_set(name)
        if not other.is_current or other.plan["preconditioner"] != "kfac":
            continue
        if any(_about_factors(other.plan)[key] != value for key, value in _about_factors(plan).items()):
            continue
        if not _units_of(_sample(other.selected)).equals(_units_of(sample)):
            continue
        try:
            found = stored_factors(other)
        except DamagedRunError:
            continue
        return found if isinstance(found, KroneckerFactors) else None
    return None


def _about_factors(plan: dict[str, Any]) -> dict[str, Any]:
    """Of a plan, what decides the factors besides the sample."""
    return {
        "fingerprint": plan["model"]["fingerprint"],
        "blocks": [block["name"] for block in plan["blocks"]],
        **{key: plan[key] for key in ("unit_type", "loss", "window_tokens")},
        **{key: plan["selection"][key] for key in ("loss_reduction", "group_by")},
    }


def _units_of(sample: Any) -> Any:  # noqa: ANN401 - see _sample
    """A sample without what was measured of its units."""
    return sample.select([c for c in sample.column_names if c != "loss"])


class _MeteredEngine:
    """Stands where unit_rows asks an engine for rows; adds up factors instead, and gives rows of no numbers."""

    def __init__(self, loaded: LoadedModel, blocks: tuple[Block, ...]) -> None:
        self.meter: FactorMeter[Any] = FactorMeter(loaded.model, blocks)
        self.device = torch.device(loaded.model.device)
        self.dtype = torch.float32
        self.dim = 0
        self.columns = [slice(0, 0)]

    def rows(
        self,
        batch: Batch,
        losses: Losses[Batch],
        example: torch.Tensor | None = None,
        *,
        num_examples: int | None = None,
    ) -> GradientRows:
        """Add the batch's units."""
        self.meter.add(batch, losses, example, num_examples=num_examples)
        count = len(example) if example is not None else int(num_examples or 0)
        nothing = torch.zeros(count, 0)
        return GradientRows(rows=nothing, block_norms=nothing, losses=torch.zeros(count))
