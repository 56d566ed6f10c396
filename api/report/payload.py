"""What a report shows: the contract between a run and the page.

Knows names, shapes and the ranges of indices. Knows no run, no model and no page: whoever exports a report
fills a `Payload`, and `render` turns it into a file. Every text in it (titles, tokens, labels, file names)
counts as an attacker's input and may hold anything that a Python string can hold.

Columns are numpy arrays, copied and made read-only; a number that is not known is NaN in a float column and -1
in a column of indices. Optional parts are None or empty: the page then says so in words, or leaves the part out.
"""

from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from .columns import FloatCube, Floats, FloatTable, IndexTable, Indices, same_length, within


class _Part(BaseModel):
    """Frozen, and strict about names: a misspelt field is an error, not a silent gap in the page."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class Figure(_Part):
    """One figure of the first screen, as it is to be read, with the null that it has to beat."""

    name: str
    value: str
    """As shown, rounded, with its unit."""
    null: str = ""
    """Shown in small type beneath: the null's value, and a rival's where there is one."""
    definition: str
    caveat: str = ""
    command: str = ""
    """The command line that computes this figure again."""


class Header(_Part):
    """The first thing that a reader meets."""

    title: str
    model: str
    num_parameters: int = Field(ge=0)
    step: int | None = None
    """The checkpoint that the rows were taken at."""
    sentence: str
    """The whole report in one sentence, made from the data."""
    figures: tuple[Figure, ...] = ()


class Measured(_Part):
    """A value with its 95 % interval, and the 99th percentile of the same measure under its null."""

    value: float
    low: float
    high: float
    null_99: float | None = None


class EvidenceRow(_Part):
    """One way of describing tokens (the quanta, or a rival), measured."""

    name: str
    first: Measured | None = None
    second: Measured | None = None
    plain: float | None = None
    ours: bool = False
    """Set apart in the table."""


class Measure(_Part):
    """A column of the evidence table."""

    name: str
    definition: str
    caveat: str = ""
    command: str = ""


class Evidence(_Part):
    """The quanta beside their rivals, on the same tokens."""

    sentence: str = ""
    first: Measure
    second: Measure
    plain: Measure
    rows: tuple[EvidenceRow, ...]


class Document(_Part):
    """A document of the data."""

    name: str
    labels: tuple[str, ...] = ()


class Window(_Part):
    """A stretch of one document, as the model read it."""

    document: int = Field(ge=0)
    char_offset: int = Field(ge=0)
    """Offset of the first token's text in the document, in characters."""
    first_line: int | None = None
    """Line of the first token in the document, counted from 1."""
    tokens: tuple[str, ...]
    """The text of each token, whitespace raw: joined they are the window's text."""


class Units(_Part):
    """The units, one entry per unit in each column."""

    window: Indices
    target: Indices
    """Position of the predicted token in its window."""
    quantum: Indices
    """-1 where the unit belongs to none."""
    loss: Floats
    """Nats."""
    cosine: Floats
    """Cosine of the unit's row with its quantum's centroid."""
    x: Floats
    y: Floats
    """Place on the map, any scale; NaN leaves the unit off the map."""
    also: Indices | None = None
    """A second quantum that the unit uses; -1 for none."""
    monogenic: Floats | None = None
    """Greatest squared weight of a quantum in the unit over the sum of them: 1 where one quantum says it all."""

    @model_validator(mode="after")
    def _equal_lengths(self) -> Self:
        optional = [name for name in ("also", "monogenic") if getattr(self, name) is not None]
        same_length(self, "window", "target", "quantum", "loss", "cosine", "x", "y", *optional)
        return self


class Exemplars(_Part):
    """Units that show what a quantum is, as indices into `Units`, best first."""

    centre: tuple[int, ...] = ()
    edge: tuple[int, ...] = ()
    counter: tuple[int, ...] = ()
    """The nearest units that belong elsewhere."""


class DocumentUse(_Part):
    """How many of a quantum's units lie in one document."""

    document: int = Field(ge=0)
    num_units: int = Field(ge=0)


class Interfering(_Part):
    """A quantum that is unlearned when another is learned."""

    quantum: int = Field(ge=0)
    cosine: float
    """Mean cosine between the rows of the two."""
    null_low: float
    """The least that units dealt out at random give (3 standard deviations)."""


class Partner(_Part):
    """A quantum that turns up in the same documents as another."""

    quantum: int = Field(ge=0)
    num_documents: int = Field(ge=0)
    """Documents that hold units of both."""
    expected: float
    """The same by chance."""


class Address(_Part):
    """Where the gradients of each quantum live in the network."""

    layers: tuple[str, ...]
    kinds: tuple[str, ...]
    share: FloatCube
    """[quantum, layer, kind]: share of the squared norm of its rows; NaN where there is no such part."""


class Quanta(_Part):
    """The quanta, one entry per quantum in each column."""

    target: tuple[str, ...]
    """The commonest predicted token."""
    pattern: tuple[tuple[str | None, ...], ...]
    """What comes before it: the last positions, oldest first; None where they differ between units."""
    distinguishing: tuple[tuple[str, ...], ...]
    """Tokens of the context that set it apart from other quanta."""
    phrase: tuple[str, ...]
    """The label in words."""
    size: Indices
    """Units."""
    use: Floats
    """Share of the clustered units, from 0 to 1."""
    coherence: Floats
    """Mean cosine over all pairs of its rows; NaN for a single one."""
    mean_loss: Floats
    """Nats."""
    num_documents: Indices
    exemplars: tuple[Exemplars, ...]
    nearest: IndexTable
    """[quantum, neighbour], nearest first, padded with -1."""
    nearest_cosine: FloatTable
    top_documents: tuple[tuple[DocumentUse, ...], ...] = ()
    loss_curve: FloatTable | None = None
    """[quantum, checkpoint]: mean loss of its units at each checkpoint, in nats."""
    address: Address | None = None
    name: tuple[str | None, ...] | None = None
    """Names that a language model gave; None where none did."""
    persistence: Floats | None = None
    """Share of resamples in which the quantum's branch comes back."""
    memorised: Floats | None = None
    """From 0 (supported by other documents) to 1 (by each unit's own alone)."""
    memorised_null: Floats | None = None
    """What the same has if units of one document are no more alike than others."""
    self_influence: Floats | None = None
    """Of the median unit, over that of all units."""
    monogenic: Floats | None = None
    """Mean over the units of the greatest squared weight's share."""
    effective_dimension: Floats | None = None
    dimension_low: Floats | None = None
    dimension_high: Floats | None = None
    """95 % interval; infinite where nothing bounds it."""
    dimension_null: float | None = None
    """That of rows drawn from all units."""
    community: Indices | None = None
    """Group of quanta that interact among themselves."""
    interferes: tuple[tuple[Interfering, ...], ...] = ()
    used_with: tuple[tuple[Partner, ...], ...] = ()
    emergence_step: Floats | None = None
    """Fitted step at which half of the loss drop is done."""

    @model_validator(mode="after")
    def _equal_lengths(self) -> Self:
        columns = ["target", "pattern", "distinguishing", "phrase", "size", "use", "coherence", "mean_loss"]
        columns += ["num_documents", "exemplars", "nearest", "nearest_cosine"]
        optional = ["loss_curve", "memorised", "effective_dimension", "emergence_step", "name", "persistence"]
        optional += ["memorised_null", "self_influence", "monogenic", "dimension_low", "dimension_high", "community"]
        same_length(self, *columns, *(name for name in optional if getattr(self, name) is not None))
        for name in ("interferes", "used_with"):
            if getattr(self, name) and len(getattr(self, name)) != len(self.target):
                raise ValueError(f"{name} has {len(getattr(self, name))} entries, target {len(self.target)}")
        if self.top_documents and len(self.top_documents) != len(self.target):
            raise ValueError(f"top_documents has {len(self.top_documents)} entries, target {len(self.target)}")
        if self.nearest.shape != self.nearest_cosine.shape:
            raise ValueError(f"nearest is {self.nearest.shape}, nearest_cosine {self.nearest_cosine.shape}")
        if self.address is not None:
            wanted = (len(self.target), len(self.address.layers), len(self.address.kinds))
            if self.address.share.size and self.address.share.shape != wanted:
                raise ValueError(f"address.share is {self.address.share.shape}; accepted: {wanted}")
        return self


class Tree(_Part):
    """Merges above the quanta, as scipy numbers them: merge i makes node (number of quanta) + i."""

    left: Indices
    right: Indices
    cosine: Floats
    """Mean cosine between the two sides: the height of the merge."""
    size: Indices
    """Units below the merge."""
    persistence: Floats | None = None
    """Share of resamples in which the branch comes back; NaN where it was never asked for."""

    @model_validator(mode="after")
    def _equal_lengths(self) -> Self:
        same_length(self, "left", "right", "cosine", "size", *(["persistence"] if self.persistence is not None else []))
        return self


class Fit(_Part):
    """A power law fitted to sizes by rank: log10(size) = intercept + slope · log10(rank)."""

    slope: float
    low: float
    high: float
    """95 % interval of the slope."""
    intercept: float
    first_rank: int = Field(ge=1)
    last_rank: int = Field(ge=1)


class Band(_Part):
    """A band over ranks 1, 2, …: lower and upper size at each rank."""

    low: Floats
    high: Floats

    @model_validator(mode="after")
    def _equal_lengths(self) -> Self:
        same_length(self, "low", "high")
        return self


class RankFrequency(_Part):
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


class TraceQuantum(_Part):
    """A quantum's weight in a behaviour, with its 95 % interval."""

    quantum: int = Field(ge=0)
    weight: float
    low: float
    high: float


class TraceUnit(_Part):
    """A training unit with its score: either one of `Units`, or a whole window."""

    unit: int | None = Field(default=None, ge=0)
    window: int | None = Field(default=None, ge=0)
    score: float

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.unit is None) == (self.window is None):
            raise ValueError("give either unit or window")
        return self


class Trace(_Part):
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


class Contribution(_Part):
    """How much each earlier token of a unit contributed to its row; tints the context of exemplars."""

    unit: int = Field(ge=0)
    values: Floats
    """One number for each of the last positions before the predicted token, in order."""


class RunFacts(_Part):
    """What it takes to judge the run, and to make it again."""

    num_rows: int = Field(ge=0)
    dimension: int = Field(ge=0)
    """D: numbers per row."""
    projection: str
    tokens_per_second: float | None = None
    versions: dict[str, str] = {}
    fingerprints: dict[str, str] = {}
    commands: tuple[str, ...] = ()
    """The commands that make the run and this report, in order."""
    other: dict[str, str] = {}


class Payload(_Part):
    """Everything that a report shows."""

    header: Header
    facts: RunFacts
    documents: tuple[Document, ...]
    windows: tuple[Window, ...]
    units: Units
    quanta: Quanta
    checkpoint_steps: Indices | None = None
    """The training steps that `Quanta.loss_curve` was measured at."""
    evidence: Evidence | None = None
    together: tuple[str, ...] = ()
    """What holds for all quanta together, one sentence each, with its null."""
    tree: Tree | None = None
    rank_frequency: RankFrequency | None = None
    traces: tuple[Trace, ...] = ()
    contributions: tuple[Contribution, ...] = ()

    @model_validator(mode="after")
    def _indices_exist(self) -> Self:
        num_units, num_quanta = len(self.units.window), len(self.quanta.target)
        num_windows, num_documents = len(self.windows), len(self.documents)
        within("windows.document", [window.document for window in self.windows], num_documents)
        within("units.window", self.units.window, num_windows)
        within("units.quantum", self.units.quantum, num_quanta, absent=True)
        within("quanta.nearest", self.quanta.nearest, num_quanta, absent=True)
        for exemplars in self.quanta.exemplars:
            within("exemplars", exemplars.centre + exemplars.edge + exemplars.counter, num_units)
        if self.units.also is not None:
            within("units.also", self.units.also, num_quanta, absent=True)
        within("interferes", [met.quantum for met in sum(self.quanta.interferes, ())], num_quanta)
        within("used_with", [met.quantum for met in sum(self.quanta.used_with, ())], num_quanta)
        for uses in self.quanta.top_documents:
            within("top_documents", [use.document for use in uses], num_documents)
        within("contributions.unit", [entry.unit for entry in self.contributions], num_units)
        for trace in self.traces:
            found = trace.supporting + trace.opposing + trace.lexical
            within("trace.unit", [entry.unit for entry in found if entry.unit is not None], num_units)
            within("trace.window", [entry.window for entry in found if entry.window is not None], num_windows)
            within("trace.quantum", [entry.quantum for entry in trace.quanta], num_quanta)
        if self.rank_frequency is not None and self.rank_frequency.quantum is not None:
            within("rank_frequency.quantum", self.rank_frequency.quantum, num_quanta, absent=True)
        return self

    @model_validator(mode="after")
    def _targets_lie_in_windows(self) -> Self:
        lengths = np.array([len(window.tokens) for window in self.windows], dtype=np.int64)
        if np.any(self.units.target < 0) or np.any(self.units.target >= lengths[self.units.window]):
            raise ValueError("units.target: a position outside its window")
        return self

    @model_validator(mode="after")
    def _tree_and_curve_fit(self) -> Self:
        curve, steps = self.quanta.loss_curve, self.checkpoint_steps
        if curve is not None and (steps is None or (curve.size and curve.shape[1] != len(steps))):
            raise ValueError(f"loss_curve is {curve.shape}; checkpoint_steps must give the step of each column")
        if self.tree is not None:
            num_quanta = len(self.quanta.target)
            for merge, sides in enumerate(zip(self.tree.left, self.tree.right, strict=True)):
                within(f"tree merge {merge}", sides, num_quanta + merge)
        return self
