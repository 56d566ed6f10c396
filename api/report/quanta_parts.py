"""The parts of a payload that hold units, quanta and the tree above them, as columns."""

from typing import Self

from pydantic import Field, model_validator

from .columns import FloatCube, Floats, FloatTable, IndexTable, Indices, same_length
from .part import Part


class Units(Part):
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


class Exemplars(Part):
    """Units that show what a quantum is, as indices into `Units`, best first."""

    centre: tuple[int, ...] = ()
    edge: tuple[int, ...] = ()
    counter: tuple[int, ...] = ()
    """The nearest units that belong elsewhere."""


class DocumentUse(Part):
    """How many of a quantum's units lie in one document."""

    document: int = Field(ge=0)
    num_units: int = Field(ge=0)


class Interfering(Part):
    """A quantum that is unlearned when another is learned."""

    quantum: int = Field(ge=0)
    cosine: float
    """Mean cosine between the rows of the two."""
    null_low: float
    """The least that units dealt out at random give (3 standard deviations)."""


class Partner(Part):
    """A quantum that turns up in the same documents as another."""

    quantum: int = Field(ge=0)
    num_documents: int = Field(ge=0)
    """Documents that hold units of both."""
    expected: float
    """The same by chance."""


class Address(Part):
    """Where the gradients of each quantum live in the network."""

    layers: tuple[str, ...]
    kinds: tuple[str, ...]
    share: FloatCube
    """[quantum, layer, kind]: share of the squared norm of its rows; NaN where there is no such part."""


class Quanta(Part):
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
    persistence_null: Floats | None = None
    """What 95 % of branches of like size in shuffled columns do not exceed; NaN where there are none."""
    memorised: Floats | None = None
    """From 0 (supported by other documents) to 1 (by each unit's own alone)."""
    memorised_null: Floats | None = None
    """What the same has if units of one document are no more alike than others."""
    self_influence: Floats | None = None
    """Of the median unit, over that of all units."""
    influence_low: Floats | None = None
    influence_high: Floats | None = None
    """Where the median of as many units drawn from all lies in 95 % of draws."""
    monogenic: Floats | None = None
    """Mean over the units of the greatest squared weight's share."""
    monogenic_null: Floats | None = None
    """The same of units that use that quantum alone by construction."""
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
        optional += ["persistence_null", "influence_low", "influence_high", "monogenic_null"]
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


class Tree(Part):
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
