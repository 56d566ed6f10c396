"""What a report is made from: the run, its quanta, and the units that one page can hold.

Knows the client and the run; nothing of the page.
"""

import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...jobs.change.curves import load_curves
from ...jobs.quanta.clustered import Quanta
from ...jobs.quanta.contexts import Contexts
from .payload import Document, Window

if TYPE_CHECKING:
    from ..client import Client

MAX_UNITS = 20_000
"""Units that one report carries; of more, exemplars, traced units and an even sample are shown."""


class Source:
    """A client's quanta, and which of their units, windows and documents a page has room for."""

    def __init__(self, client: "Client") -> None:
        self.client = client
        self.run = client.run
        self.quanta = Quanta(client.run, client.quanta_name)
        self.traces = client.traces()
        self.contexts = Contexts(client.run)
        self.units = self.quanta.units.take(self._shown())
        self.place = {unit: place for place, unit in enumerate(self.units["unit"].to_pylist())}

    def _shown(self) -> np.ndarray:
        units = self.quanta.units
        if len(units) <= MAX_UNITS:
            return np.arange(len(units))
        number = {unit: place for place, unit in enumerate(units["unit"].to_pylist())}
        wanted = {
            u for c in ("exemplars", "edge", "counterexamples") for us in self.quanta.table[c].to_pylist() for u in us
        }
        for _, trace in self.traces:
            wanted |= {u["unit"] for part in ("units", "opposing", "lexical") for u in trace[part]}
        even = np.arange(MAX_UNITS) * len(units) // MAX_UNITS
        return np.union1d([number[u] for u in wanted], even).astype(np.int64)

    @cached_property
    def window_keys(self) -> list[tuple[int, int]]:
        """(document, first token) of every window that holds a shown unit, in order."""
        return sorted(self._window_lengths)

    @cached_property
    def _window_lengths(self) -> dict[tuple[int, int], int]:
        """Tokens of each window: the plan's, or more where a unit is longer."""
        lengths: dict[tuple[int, int], int] = {}
        columns = (self.units[c].to_pylist() for c in ("document", "first_token", "last_token"))
        for document, first, last in zip(*columns, strict=True):
            least = lengths.get((document, first), self.quanta.row_set.plan["window_tokens"])
            lengths[document, first] = max(least, last - first + 1)
        return lengths

    @cached_property
    def document_place(self) -> dict[int, int]:
        """Which of the page's documents each document of the run is."""
        return {document: place for place, document in enumerate(sorted({d for d, _ in self.window_keys}))}

    @cached_property
    def documents(self) -> tuple[Document, ...]:
        """Documents of shown units, in the run's order."""
        found = []
        for index in self.document_place:
            stored = self.contexts.document(index)
            labels = tuple(f"{k}: {v}" for k, v in stored.labels.items() if v is not None)
            found.append(Document(name=_document_name(stored.source, stored.user_id), labels=labels))
        return tuple(found)

    @cached_property
    def windows(self) -> tuple[Window, ...]:
        """Windows of shown units; of a unit longer than a window, its whole stretch."""
        found = []
        for index, first in self.window_keys:
            length = self._window_lengths[index, first]
            stored = self.contexts.document(index)
            offset = int(stored.starts[first])
            found.append(
                Window(
                    document=self.document_place[index],
                    char_offset=offset,
                    first_line=None if stored.text is None else stored.text.count("\n", 0, offset) + 1,
                    tokens=tuple(self.contexts.texts(index, first, first + length - 1)),
                )
            )
        return tuple(found)

    @cached_property
    def curves(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Steps, and each quantum's mean loss at each of them."""
        name = self.quanta.row_set.name
        if name not in self.run.derived_names("curves"):
            return None
        curves = load_curves(self.run, name)
        quantum = np.asarray(self.quanta.units["quantum"])
        losses = curves.losses[np.asarray(self.quanta.units["unit"])]
        sums = np.zeros((len(self.quanta.table), losses.shape[1]))
        np.add.at(sums, quantum, losses)
        return curves.steps, (sums / np.bincount(quantum)[:, None]).astype(np.float32)

    @cached_property
    def evidence_facts(self) -> dict[str, Any]:
        """What `measure` stored; no rows where it was not run."""
        return self.quanta.evidence() or {"rows": [], "num_shuffles": 0}

    def model(self) -> tuple[str, int | None]:
        """A name for people and the training step, from the model's folder or id."""
        name = Path(self.quanta.row_set.plan["model"]["name"])
        match = re.fullmatch(r"(?:checkpoint|step)[-_]?0*(\d+)", name.name)
        return (name.parent.name, int(match.group(1))) if match else (name.name, None)

    def places(self, units: list[int]) -> tuple[int, ...]:
        """Where these units of the run are among those shown; without those that are not."""
        return tuple(self.place[u] for u in units if u in self.place)


def _document_name(source: str, user_id: str) -> str:
    return source if user_id in ("", source) or user_id in source else f"{source} · {user_id}"
