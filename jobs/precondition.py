"""Kronecker factors of a row set: from a sample of its units, kept beside its plan, read by every worker."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ..attribution.blocks import Block
from ..attribution.engine import Batch, GradientRows, Losses
from ..attribution.preconditioning import FactorMeter, KroneckerFactors
from ..storage.rowset import RowSet
from ..storage.run import Run
from .model import LoadedModel
from .unit_rows import Task, unit_rows

FACTORS_FILE = "factors.npz"
_SAMPLE_UNITS = 256


def measure_factors(
    run: Run, selection: pa.Table, plan: dict[str, Any], loaded: LoadedModel, blocks: tuple[Block, ...]
) -> KroneckerFactors:
    """Factors from at most 256 units, evenly spaced over the selection, each by its own loss."""
    count = min(_SAMPLE_UNITS, len(selection))
    sample = selection.take(pa.array(np.arange(count) * len(selection) // count))
    meter = _MeteredEngine(loaded, blocks)
    unit_rows(Task(run=run, units=sample, selection=selection, engine=meter, plan=plan))  # type: ignore[arg-type]  # has what unit_rows asks of an engine
    return meter.meter.factors()


def encode_factors(factors: KroneckerFactors) -> bytes:
    """As a NumPy archive."""
    buffer = io.BytesIO()
    np.savez(buffer, **factors.to_arrays())  # type: ignore[arg-type]  # its stubs take the names for its own options
    return buffer.getvalue()


def stored_factors(row_set: RowSet) -> KroneckerFactors | None:
    """The factors that the row set's plan came with, if it has any."""
    if row_set.plan["preconditioner"] == "none":
        return None
    with np.load(io.BytesIO(row_set.read(FACTORS_FILE)), allow_pickle=False) as arrays:
        return KroneckerFactors.from_arrays(dict(arrays))


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
