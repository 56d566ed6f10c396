"""From a prompt and its completion to the quanta behind it and the training units that gave it.

Needs the checkpoint that the rows were taken at: its fingerprint is compared before anything is computed.
"""

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Float32

from ...attribution.engine import GradientEngine
from ...attribution.lexical import bm25
from ...attribution.losses import TokenBatch, mean_losses, token_losses
from ...attribution.search.faiss_backend import search_index
from ...attribution.tracing import QuantumWeights, extremes, novelty, quantum_weights
from ...errors import ConfigurationError, ModelNotFoundError, QueryTooLongError, RunMismatchError
from ...storage.rowset import RowSet
from ..collecting.config import RowConfig
from ..collecting.plan import make_engine
from ..collecting.precondition import stored_factors
from ..collecting.unit_rows import token_values
from ..data.source import Document
from ..data.tokens import tokenise
from ..exchange.importing import require_own_rows
from ..models.model import LoadedModel, ModelSource, load_model
from .cluster import Quanta, require_comparable
from .contexts import Contexts
from .joined import first_set

_LEXICAL_TOKENS = 32
_WINDOWS = "window"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredUnits:
    """Units of one row set with their scores, best first."""

    unit: list[int]
    score: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceResult:
    """What a behaviour goes back to."""

    prompt_tokens: list[str]
    completion_tokens: list[str]
    loss: float
    """Mean loss of the completion's tokens, in nats."""
    contributions: list[float]
    """Each token's share of the gradient, along the gradient itself; they add up to 1."""
    weights: QuantumWeights
    supporting: ScoredUnits
    opposing: ScoredUnits
    windows: ScoredUnits
    """The same score for whole windows, where the run has such a row set."""
    lexical: ScoredUnits
    """What a search by words (BM25) gives for the last tokens of the prompt."""
    novelty: float


class Tracer:
    """Traces behaviours through one set of quanta; loads the model at the first."""

    def __init__(self, quanta: Quanta, model: ModelSource | None = None) -> None:
        self.quanta = quanta
        self._source = model
        self._contexts = Contexts(quanta.run)

    def trace(self, prompt: str, completion: str, *, k: int = 20) -> TraceResult:
        """The k units with the largest and smallest cosines, the quanta's weights, and how novel the behaviour is.

        Raises QueryTooLongError beyond the model's context, RunMismatchError for another checkpoint, and
        ConfigurationError for an empty prompt or completion.
        """
        if not prompt or not completion:
            raise ConfigurationError("Give a prompt and a completion, both with at least one character.")
        if k < 1:
            raise ConfigurationError(f"k is {k}; give 1 or more.")
        document = Document(
            row=0,
            user_id="query",
            text=prompt + completion,
            labels={},
            completion=((len(prompt), len(prompt) + len(completion)),),
            source="query",
        )
        tokens = tokenise(self._loaded.tokenizer, document)
        self._require_fit(len(tokens.ids))
        position = np.flatnonzero(tokens.counts)
        position = position[position > 0]
        if not len(position):
            raise ConfigurationError("The completion has no token with a token before it: give a longer prompt.")
        batch = TokenBatch(
            ids=torch.from_numpy(tokens.ids.astype(np.int64))[None].to(self._engine.device),
            example=torch.zeros(len(position), dtype=torch.long, device=self._engine.device),
            position=torch.from_numpy(position).to(self._engine.device),
        )
        row, loss, contributions = self._row(batch)
        scores = self._units(row)
        most, least = extremes(scores, k)
        texts = [document.text[a:b] for a, b in zip(tokens.starts, tokens.ends, strict=True)]
        first = int(position[0])
        return TraceResult(
            prompt_tokens=texts[:first],
            completion_tokens=texts[first:],
            loss=loss,
            contributions=contributions.tolist(),
            weights=quantum_weights(row, self.quanta.centroids),
            supporting=self._scored(most, scores),
            opposing=self._scored(least, scores),
            windows=self._windows(row, k),
            lexical=self._lexical(tokens.ids[:first], k),
            novelty=novelty(row, self.quanta.rows, self._reference),
        )

    @cached_property
    def _loaded(self) -> LoadedModel:
        require_own_rows(first_set(self.quanta.row_set))
        plan = self.quanta.row_set.plan
        source = self._source or ModelSource(
            model=plan["model"]["name"], revision=plan["model"]["revision"], dtype=plan["model"]["dtype"]
        )
        if self._source is None and "/" in source.model and Path(source.model).is_absolute():
            self._require_folder(source.model)
        loaded = load_model(source)
        if loaded.fingerprint != plan["model"]["fingerprint"]:
            raise RunMismatchError(
                f"The rows were taken from weights {plan['model']['fingerprint'][:12]}…, {source.model} has "
                f"{loaded.fingerprint[:12]}…: give the checkpoint that was collected, with --model."
            )
        return loaded

    @staticmethod
    def _require_folder(folder: str) -> None:
        if not Path(folder).is_dir():
            raise ModelNotFoundError(f"The run's model was at {folder}, which is gone: say where it is with --model.")

    @cached_property
    def _engine(self) -> GradientEngine[TokenBatch]:
        row_set = first_set(self.quanta.row_set)
        row_set.require_current()
        config = RowConfig(**row_set.plan["request"])
        return make_engine(config, self._loaded, row_set.plan["projection"], stored_factors(row_set))[0]

    @cached_property
    def _reference(self) -> Float32[np.ndarray, " reference"]:
        values = np.asarray(self.quanta.units["nearest_elsewhere"])
        return values[np.isfinite(values)]

    def _row(self, batch: TokenBatch) -> tuple[Float32[np.ndarray, " dim"], float, Float[np.ndarray, " position"]]:
        values = token_values(first_set(self.quanta.row_set).plan)
        of = partial(mean_losses, of=values)
        made = self._engine.contributions(batch, of, num_examples=1, num_positions=batch.ids.shape[1])
        shares = made.rows[0].double()
        raw = shares.sum(0) + made.unplaced[0].double()
        if not torch.isfinite(raw).all() or not raw.any():
            raise ConfigurationError(
                "The gradient of this completion is zero or not finite: there is nothing to trace."
            )
        with torch.no_grad():
            loss = float(made.losses if values is token_losses else mean_losses(self._engine.model, batch))
        contributions = (shares @ raw / (raw @ raw)).cpu().numpy()
        row = self._prepared(raw.float().cpu().numpy())
        return row, loss, contributions

    def _prepared(self, raw: Float32[np.ndarray, " raw"]) -> Float32[np.ndarray, " dim"]:
        """The row as the quanta's rows were prepared: its blocks chosen, whitened, of unit norm."""
        chosen = self.quanta.preparation.chosen(raw[None])
        if not chosen.any():
            raise ConfigurationError(
                "The gradient of this completion is zero in the blocks that were clustered: nothing to trace."
            )
        return self.quanta.preparation.whitener.apply(chosen)[0]

    def _units(self, row: Float32[np.ndarray, " dim"]) -> Float32[np.ndarray, " unit"]:
        """Cosine with every clustered unit, from the run's FAISS index."""
        index = self.quanta.run.derived("index", self.quanta.name).file("rows.faiss")
        values, places = search_index(index, row[None], num_neighbours=len(self.quanta.units))
        scores = np.empty(len(self.quanta.units), np.float32)
        scores[places[0]] = values[0]
        return scores

    def _scored(self, places: np.ndarray, scores: np.ndarray) -> ScoredUnits:
        units = np.asarray(self.quanta.units["unit"])
        return ScoredUnits(unit=units[places].tolist(), score=scores[places].tolist())

    @cached_property
    def _window_rows(self) -> tuple[np.ndarray, np.ndarray] | None:
        run = self.quanta.run
        if _WINDOWS not in run.row_sets() or _WINDOWS in self.quanta.row_set.name.split(","):
            return None
        other: RowSet = run.row_set(_WINDOWS)
        require_comparable(self.quanta, other)
        kept, rows = other.unit_rows()
        return kept, self.quanta.preparation.apply(rows)

    def _windows(self, row: np.ndarray, k: int) -> ScoredUnits:
        if self._window_rows is None:
            return ScoredUnits(unit=[], score=[])
        kept, rows = self._window_rows
        scores = rows @ row
        most, _ = extremes(scores, k)
        return ScoredUnits(unit=kept[most].tolist(), score=scores[most].tolist())

    @cached_property
    def _unit_contexts(self) -> list[np.ndarray]:
        units: pa.Table = self.quanta.units
        columns = (units[c].to_pylist() for c in ("document", "first_token", "last_token"))
        return [
            self._contexts.document(d).tokens[max(f, t - _LEXICAL_TOKENS) : t] for d, f, t in zip(*columns, strict=True)
        ]

    def _lexical(self, prompt: np.ndarray, k: int) -> ScoredUnits:
        scores = bm25(prompt[-_LEXICAL_TOKENS:], self._unit_contexts)
        most, _ = extremes(scores, k)
        return self._scored(most[scores[most] > 0], scores)

    def _require_fit(self, num_tokens: int) -> None:
        context = self._loaded.facts.context_tokens
        if context is not None and num_tokens > context:
            raise QueryTooLongError(
                f"Prompt and completion have {num_tokens} tokens, the model's context is {context}: "
                "shorten the prompt from its beginning."
            )
