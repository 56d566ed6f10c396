"""What a report shows: the contract between a run and the page.

Knows names, shapes and the ranges of indices. Knows no run, no model and no page: whoever exports a report
fills a `Payload`, and `render` turns it into a file. Every text in it (titles, tokens, labels, file names)
counts as an attacker's input and may hold anything that a Python string can hold.

Columns are numpy arrays, copied and made read-only; a number that is not known is NaN in a float column and -1
in a column of indices. Optional parts are None or empty: the page then says so in words, or leaves the part out.
"""

from typing import Self

import numpy as np
from pydantic import model_validator

from .columns import Indices, within
from .evidence_parts import Band as Band
from .evidence_parts import Evidence as Evidence
from .evidence_parts import EvidenceRow as EvidenceRow
from .evidence_parts import Fit as Fit
from .evidence_parts import Measure as Measure
from .evidence_parts import Measured as Measured
from .evidence_parts import RankFrequency as RankFrequency
from .heading_parts import Figure as Figure
from .heading_parts import Header as Header
from .heading_parts import RunFacts as RunFacts
from .part import Part
from .quanta_parts import Address as Address
from .quanta_parts import DocumentUse as DocumentUse
from .quanta_parts import Exemplars as Exemplars
from .quanta_parts import Interfering as Interfering
from .quanta_parts import Partner as Partner
from .quanta_parts import Quanta as Quanta
from .quanta_parts import Tree as Tree
from .quanta_parts import Units as Units
from .text_parts import Contribution as Contribution
from .text_parts import Document as Document
from .text_parts import Trace as Trace
from .text_parts import TraceQuantum as TraceQuantum
from .text_parts import TraceUnit as TraceUnit
from .text_parts import Window as Window


class Payload(Part):
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
