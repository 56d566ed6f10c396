"""What a report says, taken from a run: fills the `Payload` that the page is made from.

Knows the client and the run; nothing of HTML. Sentences are made from the data, and no figure goes without its null.
"""

import re
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...jobs.clustered import Quanta
from ...jobs.contexts import Contexts
from ...jobs.curves import load_curves
from ..quanta_text import names_sentence, together_sentences
from .payload import (
    Address,
    Band,
    Document,
    DocumentUse,
    Evidence,
    EvidenceRow,
    Exemplars,
    Figure,
    Fit,
    Header,
    Interfering,
    Measure,
    Measured,
    Partner,
    Payload,
    RankFrequency,
    RunFacts,
    Trace,
    TraceQuantum,
    TraceUnit,
    Tree,
    Units,
    Window,
)
from .payload import Quanta as QuantaColumns

if TYPE_CHECKING:
    from ..client import Client

MAX_UNITS = 20_000
"""Units that one report carries; of more, exemplars, traced units and an even sample are shown."""
_TOP_DOCUMENTS = 5


def make_payload(client: "Client", *, title: str | None = None) -> Payload:
    """Everything that the report of a client's quanta shows."""
    return _Content(client).payload(title)


class _Content:
    def __init__(self, client: "Client") -> None:
        self.client = client
        self.run = client.run
        self.quanta = Quanta(client.run, client.quanta_name)
        self.traces = client.traces()
        self.contexts = Contexts(client.run)
        self.units = self.quanta.units.take(self._shown())
        self.place = {unit: place for place, unit in enumerate(self.units["unit"].to_pylist())}

    def payload(self, title: str | None) -> Payload:
        model, step = self._model()
        return Payload(
            header=self._header(title or f"{model}: skills from gradients", model, step),
            facts=self._facts(),
            documents=self._documents,
            windows=self._windows,
            units=self._unit_columns(),
            quanta=self._quantum_columns(),
            checkpoint_steps=self._curves[0] if self._curves else None,
            evidence=self._evidence(),
            together=self._together(),
            tree=self._tree(),
            rank_frequency=self._rank_frequency(),
            traces=tuple(self._trace(name, trace) for name, trace in self.traces),
        )

    # What the page can hold

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
    def _window_keys(self) -> list[tuple[int, int]]:
        """(document, first token) of every window that holds a shown unit, in order."""
        pairs = zip(self.units["document"].to_pylist(), self.units["first_token"].to_pylist(), strict=True)
        return sorted(set(pairs))

    @cached_property
    def _document_place(self) -> dict[int, int]:
        return {document: place for place, document in enumerate(sorted({d for d, _ in self._window_keys}))}

    @cached_property
    def _documents(self) -> tuple[Document, ...]:
        found = []
        for index in self._document_place:
            stored = self.contexts.document(index)
            labels = tuple(f"{k}: {v}" for k, v in stored.labels.items() if v is not None)
            found.append(Document(name=_document_name(stored.source, stored.user_id), labels=labels))
        return tuple(found)

    @cached_property
    def _windows(self) -> tuple[Window, ...]:
        length = self.quanta.row_set.plan["window_tokens"]
        found = []
        for index, first in self._window_keys:
            stored = self.contexts.document(index)
            offset = int(stored.starts[first])
            found.append(
                Window(
                    document=self._document_place[index],
                    char_offset=offset,
                    first_line=None if stored.text is None else stored.text.count("\n", 0, offset) + 1,
                    tokens=tuple(self.contexts.texts(index, first, first + length - 1)),
                )
            )
        return tuple(found)

    # Units and quanta

    def _unit_columns(self) -> Units:
        place = {key: number for number, key in enumerate(self._window_keys)}
        document, first, last = (self.units[c].to_pylist() for c in ("document", "first_token", "last_token"))
        return Units(
            window=np.array([place[key] for key in zip(document, first, strict=True)]),
            target=np.array(last) - np.array(first),
            quantum=np.asarray(self.units["quantum"]),
            loss=np.asarray(self.units["loss"]),
            cosine=np.asarray(self.units["cosine"]),
            x=np.asarray(self.units["x"]),
            y=np.asarray(self.units["y"]),
            **self._codes(),
        )

    def _codes(self) -> dict[str, Any]:
        """The second quantum that a unit uses, and how far one says it all; nothing for quanta of older versions."""
        if "code_quanta" not in self.units.column_names:
            return {}
        own = self.units["quantum"].to_pylist()
        codes = self.units["code_quanta"].to_pylist()
        also = [next((q for q in used if q != mine), -1) for used, mine in zip(codes, own, strict=True)]
        return {"also": np.array(also), "monogenic": np.asarray(self.units["monogenic"])}

    def _quantum_columns(self) -> QuantaColumns:
        table = self.quanta.table.to_pydict()
        width = max((len(n) for n in table["neighbours"]), default=0)
        return QuantaColumns(
            target=tuple(table["target"]),
            pattern=tuple(tuple(p) for p in table["pattern"]),
            distinguishing=tuple(tuple(t) for t in table["top_tokens"]),
            phrase=tuple(table["phrase"]),
            size=np.array(table["size"]),
            use=np.array(table["use"], np.float32),
            coherence=np.array(table["coherence"], np.float32),
            mean_loss=np.array(table["mean_loss"], np.float32),
            num_documents=np.array(table["num_documents"]),
            exemplars=tuple(
                Exemplars(centre=self._places(c), edge=self._places(e), counter=self._places(o))
                for c, e, o in zip(table["exemplars"], table["edge"], table["counterexamples"], strict=True)
            ),
            nearest=_padded(table["neighbours"], width, -1),
            nearest_cosine=_padded(table["neighbour_cosines"], width, np.nan),
            top_documents=self._top_documents(),
            loss_curve=self._curves[1] if self._curves else None,
            address=self._address(),
            **self._measures(table),
        )

    def _measures(self, table: dict[str, list[Any]]) -> dict[str, Any]:
        """What is measured of each quantum beside its units; nothing for quanta of older versions."""
        if "own_share" not in table:
            return {}
        interferes = zip(*(table[c] for c in ("interferes", "interferes_cosines", "interferes_null")), strict=True)
        partners = zip(*(table[c] for c in ("used_with", "used_with_shared", "used_with_expected")), strict=True)
        named = any(name is not None for name in table["name"])
        return {
            "name": tuple(table["name"]) if named else None,
            "persistence": _column(table["persistence"]),
            "memorised": _column(table["own_share"]),
            "memorised_null": _column(table["own_share_null"]),
            "self_influence": _column(table["self_influence"]),
            "monogenic": _column(table["monogenic"]),
            "effective_dimension": _column(table["dimension"]),
            "dimension_low": _column(table["dimension_low"]),
            "dimension_high": _column(table["dimension_high"]),
            "dimension_null": self.quanta.facts["dimension_null"],
            "community": np.array(table["community"]),
            "interferes": tuple(
                tuple(Interfering(quantum=q, cosine=c, null_low=n) for q, c, n in zip(*parts, strict=True))
                for parts in interferes
            ),
            "used_with": tuple(
                tuple(Partner(quantum=q, num_documents=d, expected=e) for q, d, e in zip(*parts, strict=True))
                for parts in partners
            ),
        }

    def _places(self, units: list[int]) -> tuple[int, ...]:
        return tuple(self.place[u] for u in units if u in self.place)

    def _top_documents(self) -> tuple[tuple[DocumentUse, ...], ...]:
        counts = [Counter[int]() for _ in range(len(self.quanta.table))]
        for quantum, document in zip(
            self.units["quantum"].to_pylist(), self.units["document"].to_pylist(), strict=True
        ):
            counts[quantum][self._document_place[document]] += 1
        return tuple(
            tuple(DocumentUse(document=d, num_units=n) for d, n in count.most_common(_TOP_DOCUMENTS))
            for count in counts
        )

    @cached_property
    def _curves(self) -> tuple[np.ndarray, np.ndarray] | None:
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

    def _address(self) -> Address:
        """Blocks by layer (the first number in their name) and kind (what follows it)."""
        names = [_layer_and_kind(b["name"]) for b in self.quanta.row_set.plan["blocks"]]
        layers = sorted({layer for layer, _ in names}, key=lambda n: (not n.isdigit(), int(n) if n.isdigit() else 0))
        kinds = list(dict.fromkeys(kind for _, kind in names))
        share = self.quanta.address()
        cube = np.full((len(share), len(layers), len(kinds)), np.nan, np.float32)
        for column, (layer, kind) in enumerate(names):
            cube[:, layers.index(layer), kinds.index(kind)] = share[:, column]
        return Address(layers=tuple(layers), kinds=tuple(kinds), share=cube)

    # What they are worth

    def _together(self) -> tuple[str, ...]:
        facts = self.quanta.facts
        if "interference" not in facts:
            return ()
        return (*together_sentences(facts), *([names_sentence(facts["names"])] if facts["names"] else []))

    def _tree(self) -> Tree:
        merges = self.quanta.merges
        persistence = None
        if "interference" in self.quanta.facts:  # the merges above the quanta are the last ones of the whole tree
            persistence = np.asarray(self.quanta.tree_table["persistence"])[-len(merges) or len(self.quanta.leaves) :]
        return Tree(
            persistence=persistence,
            left=merges[:, 0].astype(np.int64),
            right=merges[:, 1].astype(np.int64),
            cosine=merges[:, 2],
            size=merges[:, 3].astype(np.int64),
        )

    def _rank_frequency(self) -> RankFrequency:
        sizes = np.array(self.quanta.table["size"].to_pylist(), np.float64)
        found = self.quanta.facts["rank_frequency"]
        if found is None:
            return RankFrequency(
                sizes=sizes, quantum=np.arange(len(sizes)), sentence="Too few quanta of five units for a fit."
            )
        null = (_floats(found["null_low"]), _floats(found["null_high"]))
        fitted = slice(found["first_rank"] - 1, found["last_rank"])
        return RankFrequency(
            sizes=sizes,
            quantum=np.arange(len(sizes)),
            fit=Fit(
                slope=found["slope"],
                low=found["slope_low"],
                high=found["slope_high"],
                intercept=found["intercept"] / np.log(10),
                first_rank=found["first_rank"],
                last_rank=found["last_rank"],
            ),
            fit_band=Band(low=_floats(found["line_low"])[fitted], high=_floats(found["line_high"])[fitted]),
            null_band=Band(low=null[0], high=null[1]),
            sentence=found["sentence"],
            alternatives=found["alternatives"],
        )

    @cached_property
    def _evidence_facts(self) -> dict[str, Any]:
        return self.quanta.evidence() or {"rows": [], "num_shuffles": 0}

    def _evidence(self) -> Evidence | None:
        rows = self._evidence_facts["rows"]
        if not rows:
            return None
        return Evidence(
            sentence=(
                "Each figure is measured without a vote of the unit's own document, with a 95 % interval over them; "
                f"the null is the 99th percentile of {self._evidence_facts['num_shuffles']} shuffles of the clusters."
            ),
            first=Measure(
                name="next token",
                definition="How often the commonest target among a unit's cluster, in other documents, is its own.",
                caveat="Clusters by target token would be right by construction, so they are left out.",
                command=f"quantascope cluster {self.run.name}",
            ),
            second=Measure(
                name="role of equal tokens",
                definition=(
                    "How often the commonest syntactic role among units of the same target token and cluster, in other "
                    "documents, is the unit's own."
                ),
                caveat="Shuffled within each target token, so what the token alone gives away does not count.",
            ),
            plain=Measure(
                name="role information",
                definition="Adjusted mutual information of role and cluster within each target token.",
                caveat="0 for unrelated labels, 1 for equal partitions.",
            ),
            rows=tuple(
                EvidenceRow(
                    name=row["name"],
                    first=_measured(row.get("next_token")),
                    second=_measured(row.get("role")),
                    plain=row.get("role_information"),
                    ours=row["name"] == "quanta",
                )
                for row in rows
            ),
        )

    def _trace(self, title: str, trace: dict[str, Any]) -> Trace:
        def scored(units: list[dict[str, Any]]) -> tuple[TraceUnit, ...]:
            return tuple(
                TraceUnit(unit=self.place[u["unit"]], score=u["score"]) for u in units if u["unit"] in self.place
            )

        quanta = tuple(
            TraceQuantum(quantum=q["quantum"], weight=q["weight"], low=q["low"], high=q["high"])
            for q in trace["quanta"]
        )
        return Trace(
            title=title,
            prompt=tuple(trace["prompt_tokens"]),
            completion=tuple(trace["completion_tokens"]),
            contributions=np.array(trace["contributions"], np.float32),
            quanta=quanta,
            supporting=scored(trace["units"]),
            opposing=scored(trace["opposing"]),
            lexical=scored(trace["lexical"]),
            novelty=trace["novelty"],
            sentence=f"The completion's loss is {trace['loss']:.2f} nats.",
        )

    # The first screen

    def _model(self) -> tuple[str, int | None]:
        """A name for people and the training step, from the model's folder or id."""
        name = Path(self.quanta.row_set.plan["model"]["name"])
        match = re.fullmatch(r"(?:checkpoint|step)[-_]?0*(\d+)", name.name)
        return (name.parent.name, int(match.group(1))) if match else (name.name, None)

    def _header(self, title: str, model: str, step: int | None) -> Header:
        plan, facts = self.quanta.row_set.plan, self.quanta.facts
        parameters = plan["model"]["num_parameters"] or 0  # of imported rows nobody says it
        size = f", {_short(parameters)} parameters" if parameters else ""
        share = sum(self.quanta.table["use"].to_pylist()[:10])
        kind = "low-loss tokens" if plan["unit_type"] == "token-loss" else "windows"
        at = f", step {step:,}" if step is not None else ""
        return Header(
            title=title,
            model=model,
            num_parameters=parameters,
            step=step,
            sentence=(
                f"{model}{size}{at}: {facts['num_quanta']:,} skills in "
                f"{facts['num_units']:,} {kind}; the ten most used cover {share:.0%}."
            ),
            figures=tuple(self._figures()),
        )

    def _figures(self) -> list[Figure]:
        figures = []
        command = f"quantascope cluster {self.run.name}"
        rows = {row["name"]: row for row in self._evidence_facts["rows"]}
        for key, name, definition in (
            (
                "next_token",
                "next token told",
                "Units whose target is the commonest of their quantum elsewhere.",
            ),
            (
                "role",
                "roles of equal tokens told",
                "Units whose syntactic role their quantum tells elsewhere.",
            ),
        ):
            ours = rows.get("quanta", {}).get(key)
            if ours:
                rival = rows["previous token"][key]["value"]
                figures.append(
                    Figure(
                        name=name,
                        value=f"{ours['value']:.0%}",
                        null=f"null {ours['null_99']:.0%}, previous token {rival:.0%}",
                        definition=definition,
                        caveat=f"95 % interval over documents {ours['low']:.1%} to {ours['high']:.1%}.",
                        command=command,
                    )
                )
        found = self.quanta.facts["rank_frequency"]
        if found:
            nulls = [s for s in found["null_slopes"] if s is not None]
            null = f"95 % {found['slope_low']:.2f} to {found['slope_high']:.2f}"
            figures.append(
                Figure(
                    name="rank–frequency slope",
                    value=f"{found['slope']:.2f}",
                    null=f"{null}; null {min(nulls):.2f} to {max(nulls):.2f}" if nulls else null,
                    definition="Slope of log size on log rank of the quanta; the Quantization Model says −(1 + α).",
                    caveat=found["alternatives"],
                    command=command,
                )
            )
        figures.append(
            Figure(
                name="gradient rows",
                value=f"{len(self.quanta.row_set):,}",
                null=f"{self.quanta.row_set.plan['dim']:,} numbers each",
                definition="Units whose projected gradients were stored.",
                command=f"quantascope info {self.run.name}",
            )
        )
        return figures

    def _facts(self) -> RunFacts:
        plan = self.quanta.row_set.plan
        logs = [log for log in self.run.logged("collect") if log["rows"] == self.quanta.row_set.name]
        seconds = sum(log["seconds"] for log in logs)
        dim, projection = plan["dim"], plan["projection"]["kind"]
        return RunFacts(
            num_rows=len(self.quanta.row_set),
            dimension=dim,
            projection=projection,
            tokens_per_second=sum(log["tokens_here"] for log in logs) / seconds if seconds else None,
            versions=dict(self.run.manifest["versions"]),
            fingerprints={
                "model": plan["model"]["fingerprint"],
                "tokenizer": self.run.manifest["config"]["tokenizer_fingerprint"],
                "data": self.run.documents.index["fingerprint"],
                "rows": self.quanta.row_set.fingerprint(),
            },
            commands=(f"quantascope cluster {self.run.name}", f"quantascope report {self.run.name}"),
            other={
                "units": plan["unit_type"],
                "whitening": self.quanta.facts["config"]["whitening"]["strength"],
                "parameters with rows": _share(plan["coverage"]["covered_share"]),
            },
        )


def _measured(found: dict[str, Any] | None) -> Measured | None:
    if found is None:
        return None
    return Measured(value=found["value"], low=found["low"], high=found["high"], null_99=found["null_99"])


def _document_name(source: str, user_id: str) -> str:
    return source if user_id in ("", source) or user_id in source else f"{source} · {user_id}"


def _layer_and_kind(name: str) -> tuple[str, str]:
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return ("–", name) if number is None else (parts[number], ".".join(parts[number + 1 :]))


def _padded(rows: list[list[Any]], width: int, fill: float) -> np.ndarray:
    return np.array([row + [fill] * (width - len(row)) for row in rows]).reshape(len(rows), width)


def _floats(values: list[float | None]) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in values], np.float64)


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0%}"


def _column(values: list[float | None]) -> np.ndarray:
    """Infinities stay; what is not known is NaN."""
    return np.array([np.nan if v is None else v for v in values], np.float32)


def _short(count: int) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f} {letter}"
    return str(count)
