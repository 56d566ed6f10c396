"""The parts of a payload that say what the quanta are worth: rivals, nulls, sizes by rank."""

from typing import Self

from pydantic import Field, model_validator

from .columns import Floats, Indices, same_length
from .part import Part


class Measured(Part):
    """A value with its 95 % interval, and the 99th percentile of the same measure under its null."""

    value: float
    low: float
    high: float
    null_99: float | None = None


class EvidenceRow(Part):
    """One way of describing tokens (the quanta, or a rival), measured."""

    name: str
    first: Measured | None = None
    second: Measured | None = None
    plain: float | None = None
    ours: bool = False
    """Set apart in the table."""


class Measure(Part):
    """A column of the evidence table."""

    name: str
    definition: str
    caveat: str = ""
    command: str = ""


class Evidence(Part):
    """The quanta beside their rivals, on the same tokens."""

    sentence: str = ""
    first: Measure
    second: Measure
    plain: Measure
    rows: tuple[EvidenceRow, ...]


class Fit(Part):
    """A power law fitted to sizes by rank: log10(size) = intercept + slope · log10(rank)."""

    slope: float
    low: float
    high: float
    """95 % interval of the slope."""
    intercept: float
    first_rank: int = Field(ge=1)
    last_rank: int = Field(ge=1)


class Band(Part):
    """A band over ranks 1, 2, …: lower and upper size at each rank."""

    low: Floats
    high: Floats

    @model_validator(mode="after")
    def _equal_lengths(self) -> Self:
        same_length(self, "low", "high")
        return self


class RankFrequency(Part):
    """Sizes of the quanta by rank, largest first."""

    sizes: Floats
    quantum: Indices | None = None
    """Which quantum has each rank; the points then lead to it."""
    fit: Fit | None = None
    fit_band: Band | None = None
    null_band: Band | None = None
    sentence: str = ""
    """The exponent in words, with its interval."""
    alternatives: str = ""
    """The rivals' likelihood ratio, in one line."""
