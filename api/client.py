"""The client: questions to a run, answered in this process. `quantascope.connect(path)` gives one.

Knows jobs and storage; everything heavy is imported when the first question needs it.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ConfigurationError, RunNotFoundError
from ..storage.run import Run
from .answers import Ancestor as Ancestor
from .answers import Meetings as Meetings
from .answers import Quantum as Quantum
from .answers import QuantumMeasures as QuantumMeasures
from .answers import Trace as Trace
from .answers import TreeNode as TreeNode
from .answers import Unit as Unit
from .answers import UnitCode as UnitCode
from .answers import UsedQuantum as UsedQuantum
from .lines import finite, measures_of, quantum_of

if TYPE_CHECKING:
    import numpy as np

    from ..jobs.change.compare import StoredComparison
    from ..jobs.change.emerge import StoredEmergence
    from ..jobs.ledger.keeping import StoredLedger
    from ..jobs.quanta.clustered import Quanta
    from ..jobs.quanta.contexts import Contexts
    from ..jobs.quanta.trace import ScoredUnits, Tracer

_CONTEXT_TOKENS = 24


class Client:
    """Answers questions about one run, in this process."""

    def __init__(self, path: str | os.PathLike[str], *, quanta: str = "main") -> None:
        self.run = Run.open(path)
        self.quanta_name = quanta

    def info(self) -> dict[str, Any]:
        """What the run holds."""
        run = self.run
        documents = run.documents.index if run.documents.complete else {}
        sets = {}
        for name in run.row_sets():
            row_set = run.row_set(name)
            missing = row_set.missing_blocks()
            sets[name] = {
                "schema_version": row_set.schema_version,
                "goes_on": row_set.is_current,
                "unit_type": row_set.plan["unit_type"],
                "units": len(row_set),
                "dim": row_set.plan["dim"],
                "projection": row_set.plan["projection"]["kind"],
                "blocks": len(row_set.plan["blocks"]),
                "covered_share": row_set.plan["coverage"]["covered_share"],
                "collected": f"{row_set.num_blocks - len(missing)} of {row_set.num_blocks} blocks",
                "model": row_set.plan["model"]["name"],
                "model_fingerprint": row_set.plan["model"]["fingerprint"],
            }
        return {
            "path": str(run.store.root),
            "schema_version": run.manifest["schema_version"],
            "dataset": run.manifest["config"]["data"]["dataset"],
            "documents": documents.get("num_documents"),
            "tokens": documents.get("num_tokens"),
            "skipped_rows": len(documents.get("skipped", [])),
            "row_sets": sets,
            "quanta": run.derived_names("quanta"),
            "versions": run.manifest["versions"],
        }

    def quanta(self, *, grain: float | None = None) -> list[Quantum]:
        """All quanta, the most used first; or the groups that the tree has at another grain, numbered anew by size.

        `grain` is a number of groups (2 for the broadest two), or a fraction for the mean cosine of the cut. Raises
        ConfigurationError for a grain that the tree does not have.
        """
        if grain is None:
            return [self.quantum(i) for i in range(len(self._quanta.table))]
        from ..jobs.quanta.grains import at_grain

        return [quantum_of(row) for row in at_grain(self._quanta, grain).to_pylist()]

    def quantum(self, id: int) -> Quantum:
        """One quantum; RunNotFoundError if there is none of that number."""
        table = self._quanta.table
        if not 0 <= id < len(table):
            raise RunNotFoundError(f"There is no quantum {id}; they are numbered 0 to {len(table) - 1}.")
        row = table.slice(id, 1).to_pylist()[0]
        return replace(quantum_of(row), facts=measures_of(row, self._shares(id)))

    def tree(self, *, fine: bool = False) -> list[TreeNode]:
        """The tree from its root down to the quanta, or, with `fine`, down to single units (or micro-clusters).

        RunNotFoundError for quanta that an older version stored.
        """
        from ..jobs.quanta.grains import tree_nodes

        return [TreeNode(**row) for row in tree_nodes(self._quanta, fine=fine)]

    def ancestors(
        self,
        *,
        unit: int | None = None,
        document: int | None = None,
        group: tuple[str, str] | None = None,
        quantum: int | None = None,
    ) -> list[Ancestor]:
        """The same skill at every grain, from the narrowest node that was asked for up to the whole.

        Ask for one unit, a document, a group of units (a label and its value) or a quantum. For several units the way
        leads down into the side that holds more of them, while that is more than half. Raises ConfigurationError unless
        exactly one is given, RunNotFoundError for what is not there.
        """
        from ..jobs.quanta.grains import ancestors

        steps, count = ancestors(self._quanta, unit=unit, document=document, group=group, quantum=quantum)
        return [
            Ancestor(
                node=step.node,
                label=step.label,
                size=step.size,
                cosine=step.cosine,
                persistence=step.persistence,
                quantum=step.quantum,
                share=step.held / count,
                expected=step.size / len(self._quanta.units),
            )
            for step in steps
        ]

    def interference(self) -> Meetings:
        """Mean cosines between all quanta, with their null and their communities."""
        found, facts = self._quanta.interference(), self._quanta.facts["communities"] or {}
        return Meetings(
            mean_cosine=found.cosines(self._quanta.centroids),
            null_mean=found.mean,
            null_spread=found.spread(),
            community=tuple(self._quanta.table["community"].to_pylist()),
            modularity=facts.get("modularity"),
            modularity_null=facts.get("null_mean"),
        )

    def codes(self, unit: int) -> UnitCode:
        """The quanta that a unit uses, with weights; RunNotFoundError if it was not clustered."""
        if unit not in self._place:
            raise RunNotFoundError(f"Unit {unit} was not clustered: `units()` lists those that were.")
        row = self._quanta.units.slice(self._place[unit], 1).to_pylist()[0]
        if "code_quanta" not in row:
            raise RunNotFoundError(
                f"Quanta {self.quanta_name!r} have no codes: `quantascope cluster` makes them again."
            )
        return UnitCode(
            unit=unit,
            quanta=tuple(zip(row["code_quanta"], row["code_weights"], strict=True)),
            monogenic=finite(row["monogenic"]),
            explained=row["explained"],
        )

    def units(self, *, quantum: int | None = None) -> Iterator[Unit]:
        """The clustered units, or those of one quantum, the nearest to its centre first."""
        import numpy as np

        table = self._quanta.units
        places = np.arange(len(table))
        if quantum is not None:
            self.quantum(quantum)
            places = np.flatnonzero(np.asarray(table["quantum"]) == quantum)
            places = places[np.argsort(-np.asarray(table["cosine"])[places], kind="stable")]
        for place in places.tolist():
            row = table.slice(place, 1).to_pylist()[0]
            yield self._unit(row, quantum=row["quantum"], score=row["cosine"])

    def trace(self, prompt: str, completion: str, *, k: int = 20) -> Trace:
        """Which quanta a behaviour uses, and which training units gave it.

        Loads the checkpoint at the first call. Raises QueryTooLongError, RunMismatchError for another checkpoint, and
        ConfigurationError for an empty prompt or completion.
        """
        found = self._tracer.trace(prompt, completion, k=k)
        weights = found.weights
        return Trace(
            prompt=prompt,
            completion=completion,
            loss=found.loss,
            prompt_tokens=tuple(found.prompt_tokens),
            completion_tokens=tuple(found.completion_tokens),
            contributions=tuple(found.contributions),
            quanta=tuple(
                UsedQuantum(
                    quantum=int(q),
                    label=self.quantum(int(q)).label,
                    weight=float(weights.weight[i]),
                    low=float(weights.low[i]),
                    high=float(weights.high[i]),
                )
                for i, q in enumerate(weights.quantum)
            ),
            units=self._scored(found.supporting),
            opposing=self._scored(found.opposing),
            windows=self._scored_windows(found.windows),
            lexical=self._scored(found.lexical),
            novelty=found.novelty,
        )

    def save_trace(self, title: str, trace: Trace) -> None:
        """Keep a trace in the run, under its title; the report shows it. One of that title is replaced."""
        name = re.sub(r"[^\w.-]+", "-", title).strip("-.") or "trace"
        facts = {"title": title, "trace": asdict(trace)}
        self.run.derived("traces", name).write(facts, source=self._quanta.fingerprint())

    def traces(self) -> list[tuple[str, dict[str, Any]]]:
        """Title and contents (as `Trace`'s fields) of each saved trace; those of older quanta are left out."""
        found = []
        for name in self.run.derived_names("traces"):
            derived = self.run.derived("traces", name)
            if derived.source == self._quanta.fingerprint():
                facts = derived.facts()
                found.append((facts["title"], facts["trace"]))
        return found

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Write the report, with the saved traces: one HTML file that needs no network."""
        from .report.content import make_payload
        from .report.render import render_report

        target = Path(path)
        if not target.parent.is_dir():
            raise ConfigurationError(f"{target.parent} is not a folder: make it, or choose another place.")
        page = render_report(make_payload(self))
        try:
            target.write_text(page, encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(
                f"{target} cannot be written ({error.strerror}): choose another place, or free some space."
            ) from error
        return target

    def ledger(self, name: str = "main") -> "StoredLedger":
        """The books of the training that the run was given: balance, losses, time course, documents."""
        from ..jobs.ledger.keeping import read_ledger

        return read_ledger(self.run, name)

    def emergence(self, *, over: Literal["steps", "sizes"] = "steps") -> "StoredEmergence":
        """When each of these quanta formed, as `quantascope emerge` found it: in one training, or over model sizes."""
        from ..jobs.change.emerge import read_emergence

        return read_emergence(self.run, self.quanta_name, over=over)

    def comparison(self, name: str) -> "StoredComparison":
        """What `quantascope compare` found and stored under that name."""
        from ..jobs.change.compare import read_comparison

        return read_comparison(self.run, name)

    def use_model(self, model: str) -> None:
        """Trace with this copy of the checkpoint (its fingerprint is compared), where the run's own path is gone."""
        from ..jobs.models.model import ModelSource
        from ..jobs.quanta.trace import Tracer

        dtype = self._quanta.row_set.plan["model"]["dtype"]
        self.__dict__["_tracer"] = Tracer(self._quanta, ModelSource(model=model, dtype=dtype))

    def _shares(self, id: int) -> dict[str, float]:
        blocks = [block["name"] for block in self._quanta.row_set.plan["blocks"]]
        return dict(zip(blocks, self._address[id].tolist(), strict=True))

    @cached_property
    def _address(self) -> "np.ndarray":
        return self._quanta.address()

    @cached_property
    def _quanta(self) -> "Quanta":
        from ..jobs.quanta.clustered import Quanta

        names = self.run.derived_names("quanta")
        if self.quanta_name not in names:
            raise RunNotFoundError(
                f"{self.run.store.root} has no quanta {self.quanta_name!r} (it has {', '.join(names) or 'none yet'}): "
                "`quantascope cluster` makes them."
            )
        return Quanta(self.run, self.quanta_name)

    @cached_property
    def _contexts(self) -> "Contexts":
        from ..jobs.quanta.contexts import Contexts

        return Contexts(self.run)

    @cached_property
    def _tracer(self) -> "Tracer":
        from ..jobs.quanta.trace import Tracer

        return Tracer(self._quanta)

    @cached_property
    def _unit_type(self) -> str:
        return str(self._quanta.row_set.plan["unit_type"])

    @cached_property
    def _place(self) -> dict[int, int]:
        return {unit: place for place, unit in enumerate(self._quanta.units["unit"].to_pylist())}

    def _scored(self, scored: "ScoredUnits") -> tuple[Unit, ...]:
        rows = [self._quanta.units.slice(self._place[u], 1).to_pylist()[0] for u in scored.unit]
        return tuple(
            self._unit(row, quantum=row["quantum"], score=s) for row, s in zip(rows, scored.score, strict=True)
        )

    def _scored_windows(self, scored: "ScoredUnits") -> tuple[Unit, ...]:
        if not scored.unit:
            return ()
        table = self.run.row_set("window").units()
        rows = [table.slice(u, 1).to_pylist()[0] for u in scored.unit]
        return tuple(
            self._unit(row, quantum=None, score=s, whole=True) for row, s in zip(rows, scored.score, strict=True)
        )

    def _unit(self, row: dict[str, Any], *, quantum: int | None, score: float, whole: bool = False) -> Unit:
        document = self._contexts.document(row["document"])
        last = row["last_token"]
        first_shown = row["first_token"] if whole else max(row["first_token"], last - _CONTEXT_TOKENS)
        texts = self._contexts.texts(row["document"], first_shown, last)
        return Unit(
            unit=row["unit"],
            quantum=quantum,
            document=row["document"],
            source=document.source,
            user_id=document.user_id,
            first_token=row["first_token"],
            last_token=last,
            text_start=row["text_start"],
            text_end=row["text_end"],
            context="" if whole else "".join(texts[:-1]),
            target="".join(texts) if whole else self._contexts.target(row["document"], last),
            loss=row["loss"],
            labels={k.removeprefix("label_"): v for k, v in row.items() if k.startswith("label_")},
            score=score,
            unit_type="window" if whole else row.get("unit_type") or self._unit_type,
        )


def connect(path: str | os.PathLike[str], *, quanta: str = "main") -> Client:
    """A client for the run at `path`, answering in this process.

    `quanta` names the clustering to ask. Raises RunNotFoundError if the folder holds no run.
    """
    if str(path).startswith(("http://", "https://")):
        raise ConfigurationError(f"{path}: there is no HTTP service yet; give the path of a run.")
    return Client(path, quanta=quanta)
