"""The demonstration from end to end: corpus, training, rows, quanta, evidence, traces, report.

Every stage is the one that users have: only the corpus, the training and the syntactic roles are the demonstration's
own. Whatever a stage finished is used again by the next call.
"""

import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ... import __version__
from ...attribution.search.faiss_backend import require_faiss
from ...jobs.change.curves import collect_curves
from ...jobs.collecting.collect import Collected, Collection, collect
from ...jobs.collecting.config import RowConfig, SelectionConfig, SetConfig
from ...jobs.data.source import DataSource
from ...jobs.models.model import ModelSource
from ...jobs.quanta.cluster import Quanta, QuantaConfig, make_quanta, measure
from ...jobs.quanta.contexts import Contexts
from ...jobs.workers.progress import Listener, Progress
from ...jobs.workers.ray_session import RayOptions, ray_session
from ...storage.run import Run
from ..client import Client
from .corpus import read_corpus, write_corpus, write_files
from .recipe import TrainingConfig
from .roles import UNPARSED, token_roles
from .training import TrainingProgress, TrainingResult, train_model

TRACES = (
    (
        "the first parameter after def name(",
        "class Reader:\n    def __init__(self, path):\n        self.path = path\n\n    def read(",
        "self",
    ),
    ("closing a bracket", "        if not isinstance(value, str", "):"),
    ("an import line", "import os\nimport sys\nfrom collections", " import"),
)
"""Behaviours that a Python programmer knows: title, prompt, completion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """Where the demonstration works, and how much it does."""

    out: str
    """The run's folder; report.html lies in it."""
    cache: str
    """Where corpus and trained model are kept for the next time."""
    quick: bool = False
    """About a minute: a smaller corpus, model and selection."""
    num_workers: int | None = None


def run_demo(config: DemoConfig, listener: Listener) -> str:
    """Run the demonstration, and return its summary."""
    require_faiss()
    start = time.monotonic()
    quick = config.quick
    name = f"demo{'-quick' if quick else ''}-{__version__}-python-{platform.python_version()}"
    home = Path(config.cache).expanduser().resolve() / name
    home.mkdir(parents=True, exist_ok=True)
    whole, corpus = home / "corpus", home / "training-files"
    write_corpus(whole, max_bytes=1_500_000 if quick else None)
    recipe = TrainingConfig.quick() if quick else TrainingConfig()
    trained = train_model(recipe, whole, home / "python-stdlib", _training_listener(recipe, listener))
    held_out = set(trained.held_out_names)
    write_files(corpus, {file: data for file, data in read_corpus(whole).items() if file not in held_out})
    out = Path(config.out).resolve()
    options = RayOptions(num_workers=config.num_workers)
    with ray_session(options):
        tokens = collect(_tokens(trained, corpus, out, quick=quick), options, listener=listener)
        windows = collect(_windows(trained, corpus, out, quick=quick), options, listener=listener)
        with Run.open(out).store.lock():
            checkpoints = [ModelSource(model=str(folder)) for folder in trained.checkpoints]
            collect_curves(Run.open(out), "token-loss", checkpoints, options, listener=listener)
    run = Run.open(out)
    with run.store.lock():
        quanta = make_quanta(run, QuantaConfig(), listener=listener)
        evidence = measure(quanta, roles=syntactic_roles)
        client = Client(out)
        for title, prompt, completion in TRACES:
            client.save_trace(title, client.trace(prompt, completion))
    report = client.report(out / "report.html")
    return _summary(quanta, evidence, tokens, windows, trained=trained, report=report, seconds=time.monotonic() - start)


def syntactic_roles(run: Run, units: pa.Table) -> np.ndarray:
    """The role of each unit's predicted token in its source, as codes; −1 where the source does not parse."""
    contexts = Contexts(run)
    document, token = np.asarray(units["document"]), np.asarray(units["last_token"])
    names = np.full(len(units), UNPARSED, dtype=object)
    for index in np.unique(document):
        stored = contexts.document(int(index))
        here = np.flatnonzero(document == index)
        offsets = np.stack([stored.starts[token[here]], stored.ends[token[here]]], axis=1)
        assert stored.text is not None, "the demonstration keeps the text"
        names[here] = token_roles(stored.text, offsets)
    codes = np.unique(names.astype(str), return_inverse=True)[1].astype(np.int64)
    codes[names == UNPARSED] = -1
    return codes


def _collection(trained: TrainingResult, corpus: Path, out: Path, selection: SelectionConfig) -> Collection:
    return Collection(
        out=str(out),
        model=ModelSource(model=str(trained.checkpoints[-1])),
        data=DataSource(dataset=str(corpus)),
        config=SetConfig(selection=selection, rows=RowConfig(rows_per_block=256)),
    )


def _tokens(trained: TrainingResult, corpus: Path, out: Path, *, quick: bool) -> Collection:
    selection = SelectionConfig(
        max_loss=2.0 if quick else 0.2,
        max_units=400 if quick else 4_000,
        max_per_window=16,
        scan_tokens=40_000 if quick else 250_000,
    )
    return _collection(trained, corpus, out, selection)


def _windows(trained: TrainingResult, corpus: Path, out: Path, *, quick: bool) -> Collection:
    selection = SelectionConfig(unit_type="window", max_units=100 if quick else 1_000)
    return _collection(trained, corpus, out, selection)


def _training_listener(recipe: TrainingConfig, listener: Listener) -> Any:  # noqa: ANN401 - a callback
    def listen(event: TrainingProgress) -> None:
        listener(
            Progress(
                stage="train",
                done=round(event.fraction * recipe.seconds),
                total=round(recipe.seconds),
                unit="s",
                seconds=event.fraction * recipe.seconds,
            )
        )

    return listen


def _summary(
    quanta: Quanta,
    evidence: dict[str, Any],
    tokens: Collected,
    windows: Collected,
    *,
    trained: TrainingResult,
    report: Path,
    seconds: float,
) -> str:
    found = quanta.facts["rank_frequency"]
    num_shuffles = evidence["num_shuffles"]
    rates = [
        f"{c.tokens_here / c.seconds:,.0f} tokens/s and {c.rows_here / c.seconds:,.1f} rows/s"
        if c.rows_here
        else "collected before"
        for c in (tokens, windows)
    ]
    lines = [
        "",
        (
            f"model     {trained.num_parameters / 1e6:.1f} M parameters, {trained.num_steps:,} steps, held-out loss "
            f"{trained.held_out_loss:.2f} nats/token ({trained.held_out_bits_per_byte:.2f} bits/byte)"
        ),
        (
            f"rows      {tokens.num_units:,} token losses ({rates[0]}), {windows.num_units:,} windows ({rates[1]}), "
            f"D = {tokens.dim:,}; {tokens.refused + windows.refused} refused"
        ),
        f"quanta    {quanta.facts['num_quanta']:,}",
    ]
    if found:
        lines.append(f"slope     {found['sentence']}")
    lines += [
        "",
        f"{'evidence (share of units, leave-one-document-out)':<52}{'next token':<34}role of equal tokens",
    ]
    lines += [
        f"  {row['name']:<50}{_evidence(row.get('next_token')):<34}{_evidence(row.get('role'))}"
        for row in evidence["rows"]
    ]
    lines += [
        f"  [95 % interval over documents] and 99th percentile of {num_shuffles} shuffles",
        "",
        f"report    {report}",
        f"run       quantascope info {quanta.run.store.root}",
        f"took      {seconds:,.0f} s",
    ]
    return "\n".join(lines)


def _evidence(found: dict[str, Any] | None) -> str:
    if found is None:
        return "–"
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}] null {found['null_99']:.3f}"
