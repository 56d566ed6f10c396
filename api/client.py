"""The client: questions to a run, answered in this process. `quantascope.connect(path)` gives one.

Knows jobs and storage; everything heavy is imported when the first question needs it.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError, RunNotFoundError
from ..storage.run import Run

if TYPE_CHECKING:
    from ..jobs.contexts import Contexts
    from ..jobs.quanta import Quanta
    from ..jobs.trace import ScoredUnits, Tracer

_CONTEXT_TOKENS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A unit with the words around it."""

    unit: int
    """Its number in the row set."""
    quantum: int | None
    """None for units that were not clustered (windows, zero or refused rows)."""
    document: int
    source: str
    """File or data set that the document came from."""
    user_id: str
    first_token: int
    last_token: int
    """Both inclusive; for a token-loss unit the last one is the predicted token."""
    text_start: int
    text_end: int
    """Characters of the predicted token (or of the window) in the document."""
    context: str
    """The text before the predicted token, cut to its last tokens."""
    target: str
    """The predicted token (for a window, its text)."""
    loss: float
    """Nats."""
    labels: dict[str, str | None]
    score: float | None = None
    """Cosine with the quantum's centroid, or with the behaviour that was traced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantum:
    """A quantum: what it predicts after what, how big it is, where it lives."""

    id: int
    """Its number: 0 is the most used."""
    label: str
    target: str
    pattern: tuple[str | None, ...]
    """Tokens before the target, oldest first; None where they vary."""
    distinguishing: tuple[str, ...]
    size: int
    use: float
    """Share of the clustered units."""
    mean_loss: float
    coherence: float
    """Mean cosine over all pairs of its rows; NaN for a single one."""
    num_documents: int
    nearest: tuple[tuple[int, float], ...]
    """Nearest quanta, and the cosines of the centroids."""
    exemplars: tuple[int, ...]
    """Units nearest to its centre."""
    edge: tuple[int, ...]
    counterexamples: tuple[int, ...]
    """Nearest units that belong elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedQuantum:
    """A quantum's part in a behaviour, with its 95 % interval."""

    quantum: int
    label: str
    weight: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A behaviour, the quanta that it uses, and the training units behind it."""

    prompt: str
    completion: str
    loss: float
    """Mean loss of the completion's tokens, in nats."""
    prompt_tokens: tuple[str, ...]
    completion_tokens: tuple[str, ...]
    contributions: tuple[float, ...]
    """Share of each token of prompt and completion in the gradient; they add up to 1."""
    quanta: tuple[UsedQuantum, ...]
    units: tuple[Unit, ...]
    """Supporting units, best first."""
    opposing: tuple[Unit, ...]
    windows: tuple[Unit, ...]
    """Whole windows by the same score, where the run has window rows."""
    lexical: tuple[Unit, ...]
    """What a search by words gives instead."""
    novelty: float
    """Share of training units that are less strange than this behaviour, from 0 to 1."""


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

    def quanta(self) -> list[Quantum]:
        """All quanta, the most used first."""
        return [self.quantum(i) for i in range(len(self._quanta.table))]

    def quantum(self, id: int) -> Quantum:
        """One quantum; RunNotFoundError if there is none of that number."""
        table = self._quanta.table
        if not 0 <= id < len(table):
            raise RunNotFoundError(f"There is no quantum {id}; they are numbered 0 to {len(table) - 1}.")
        row = table.slice(id, 1).to_pylist()[0]
        return Quantum(
            id=id,
            label=row["phrase"],
            target=row["target"],
            pattern=tuple(row["pattern"]),
            distinguishing=tuple(row["top_tokens"]),
            size=row["size"],
            use=row["use"],
            mean_loss=row["mean_loss"],
            coherence=row["coherence"],
            num_documents=row["num_documents"],
            nearest=tuple(zip(row["neighbours"], row["neighbour_cosines"], strict=True)),
            exemplars=tuple(row["exemplars"]),
            edge=tuple(row["edge"]),
            counterexamples=tuple(row["counterexamples"]),
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

    def use_model(self, model: str) -> None:
        """Trace with this copy of the checkpoint (its fingerprint is compared), where the run's own path is gone."""
        from ..jobs.model import ModelSource
        from ..jobs.trace import Tracer

        dtype = self._quanta.row_set.plan["model"]["dtype"]
        self.__dict__["_tracer"] = Tracer(self._quanta, ModelSource(model=model, dtype=dtype))

    @cached_property
    def _quanta(self) -> "Quanta":
        from ..jobs.quanta import Quanta

        names = self.run.derived_names("quanta")
        if self.quanta_name not in names:
            raise RunNotFoundError(
                f"{self.run.store.root} has no quanta {self.quanta_name!r} (it has {', '.join(names) or 'none yet'}): "
                "`quantascope cluster` makes them."
            )
        return Quanta(self.run, self.quanta_name)

    @cached_property
    def _contexts(self) -> "Contexts":
        from ..jobs.contexts import Contexts

        return Contexts(self.run)

    @cached_property
    def _tracer(self) -> "Tracer":
        from ..jobs.trace import Tracer

        return Tracer(self._quanta)

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
        )


def connect(path: str | os.PathLike[str], *, quanta: str = "main") -> Client:
    """A client for the run at `path`, answering in this process.

    `quanta` names the clustering to ask. Raises RunNotFoundError if the folder holds no run.
    """
    if str(path).startswith(("http://", "https://")):
        raise ConfigurationError(f"{path}: there is no HTTP service yet; give the path of a run.")
    return Client(path, quanta=quanta)
