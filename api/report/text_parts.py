"""The parts of a payload that hold tokens: documents, windows, behaviours."""

from typing import Self

from pydantic import Field, model_validator

from .columns import Floats
from .part import Part


class Document(Part):
    """A document of the data."""

    name: str
    labels: tuple[str, ...] = ()


class Window(Part):
    """A stretch of one document, as the model read it."""

    document: int = Field(ge=0)
    char_offset: int = Field(ge=0)
    """Offset of the first token's text in the document, in characters."""
    first_line: int | None = None
    """Line of the first token in the document, counted from 1."""
    tokens: tuple[str, ...]
    """The text of each token, whitespace raw: joined they are the window's text."""


class TraceQuantum(Part):
    """A quantum's weight in a behaviour, with its 95 % interval."""

    quantum: int = Field(ge=0)
    weight: float
    low: float
    high: float


class TraceUnit(Part):
    """A training unit with its score: either one of `Units`, or a whole window."""

    unit: int | None = Field(default=None, ge=0)
    window: int | None = Field(default=None, ge=0)
    score: float

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.unit is None) == (self.window is None):
            raise ValueError("give either unit or window")
        return self


class Trace(Part):
    """A behaviour, the quanta that it uses, and the training units behind it."""

    title: str
    prompt: tuple[str, ...]
    completion: tuple[str, ...]
    contributions: Floats | None = None
    """One number per token of prompt and completion together: positive helps."""
    quanta: tuple[TraceQuantum, ...] = ()
    supporting: tuple[TraceUnit, ...] = ()
    opposing: tuple[TraceUnit, ...] = ()
    lexical: tuple[TraceUnit, ...] = ()
    """What a search by words would have given."""
    novelty: float | None = Field(default=None, ge=0, le=1)
    """The share of training windows that are less strange than this behaviour."""
    sentence: str = ""

    @model_validator(mode="after")
    def _one_contribution_per_token(self) -> Self:
        num_tokens = len(self.prompt) + len(self.completion)
        if self.contributions is not None and len(self.contributions) != num_tokens:
            raise ValueError(f"{len(self.contributions)} contributions for {num_tokens} tokens")
        return self


class Contribution(Part):
    """How much each earlier token of a unit contributed to its row; tints the context of exemplars."""

    unit: int = Field(ge=0)
    values: Floats
    """One number for each of the last positions before the predicted token, in order."""
