"""A ledger on disk: its state beside a checkpoint, to go on from, and its sheets in a run, to ask.

Joins attribution.ledger to storage. Knows neither transformers nor Ray.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ...attribution.ledger import BalanceSheet, InteractionSheet, Ledger, LossSheet, SketchedLedger
from ...attribution.ledger.sheets import Course
from ...errors import DamagedRunError, NoSpaceError, RunNotFoundError
from ...storage.derived import Derived
from ...storage.run import Run

ROOM = "ledger"


def save_state(ledger: Ledger, path: str | os.PathLike[str]) -> Path:
    """Write a ledger's state as one safetensors file, whole or not at all; its bits are the ledger's."""
    state = ledger.state_dict()
    tensors = {n: t.detach().cpu().contiguous().clone() for n, t in state["tensors"].items()}
    data = save(tensors, metadata={"facts": json.dumps(state["facts"])})
    target = Path(path)
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(target)
    except OSError as error:
        raise NoSpaceError(
            f"The ledger's state cannot be written to {target} ({error.strerror}): free {len(data):,} bytes, or choose "
            "another place."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return target


def load_state(ledger: Ledger, path: str | os.PathLike[str]) -> None:
    """Go on from what `save_state` wrote, with the model and the optimiser of the same checkpoint.

    RunNotFoundError without the file, DamagedRunError for another one's bytes, RunMismatchError where it does not fit.
    """
    source = Path(path)
    if not source.is_file():
        raise RunNotFoundError(
            f"{source} is missing: the ledger's state must be kept with each checkpoint that training goes on from. "
            "Without it the steps before have no entries: go on without a ledger, or train from the start with one."
        )
    try:
        with safe_open(source, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DamagedRunError(f"{source} is damaged: it is not the ledger's state that was written.") from error
    ledger.load_state_dict({"facts": facts, "tensors": tensors})


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLedger:
    """What a run keeps of a ledger."""

    name: str
    balance: BalanceSheet
    losses: LossSheet | None
    course: Course
    facts: dict[str, Any]
    """What the writer recorded: data set, model, seed, recipe."""
    grade: dict[str, Any]
    """`exact`, or `sketched` with what it assumes."""
    interactions: InteractionSheet | None
    """What pairs of accounts did together, where that was booked."""
    examples: pa.Table | None
    """A line per example (step, id, kind, norm, along), where the ledger kept them."""


def write_ledger(
    path: str | os.PathLike[str],
    ledger: Ledger | SketchedLedger,
    *,
    name: str = "main",
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write a ledger's sheets into the run at `path` as RUN/ledger/<name>/, in place of an older one.

    Makes a run that holds nothing else where there is none. Tables are Parquet: `entries` (each account's part of the
    weights' change, by module and period), `accounts` (the matrix, by module), `course` (the matrix, by period),
    `losses`, and where the ledger kept them `examples` and `pairs` (what two accounts did together). What a period's
    vectors were is not kept.
    """
    balance, losses, course, single = ledger.balance(), ledger.loss_sheet(), ledger.course(), ledger.example_facts()
    pairs = ledger.interactions()
    value = {
        "accounts": list(balance.accounts),
        "modules": list(balance.modules),
        "num_steps": balance.num_steps,
        "num_skipped": balance.num_skipped,
        "evaluation": {"kinds": list(losses.kinds), "counts": losses.counts.tolist()} if losses else None,
        "about": dict(facts or {}),
        "grade": ledger.grade,
        "num_examples": len(single.step) if single else 0,
        "interactions_missed": pairs.missed.tolist() if pairs else None,
    }
    arrays = {
        "gram": balance.gram,
        "along": balance.along,
        "change_square": balance.change_square,
        "residual_square": balance.residual_square,
        "period_change_square": course.change_square,
        "period_steps": course.steps,
    }
    tables = {"entries": _entries(balance, course)} | (_loss_tables(losses) if losses else {})
    if single is not None:
        tables["examples"] = pa.table(asdict(single))
    if pairs is not None:
        tables |= _pair_tables(pairs)
    with _opened(path) as run:
        run.derived(ROOM, name).write(value, source=_origin(ledger), arrays=arrays, tables=tables)


def read_ledger(run: Run, name: str = "main") -> StoredLedger:
    """What `write_ledger` wrote; RunNotFoundError if there is none of that name."""
    derived = run.derived(ROOM, name)
    facts = derived.facts()
    accounts, modules = tuple(facts["accounts"]), tuple(facts["modules"])
    balance = BalanceSheet(
        accounts=accounts,
        modules=modules,
        gram=derived.array("gram"),
        along=derived.array("along"),
        change_square=derived.array("change_square"),
        residual_square=derived.array("residual_square"),
        num_steps=facts["num_steps"],
        num_skipped=facts["num_skipped"],
    )
    steps = derived.array("period_steps")
    entries = derived.table("entries")
    periods = entries.slice(len(modules) * len(accounts))  # before them stands the whole run
    shape = (len(steps) - 1, len(modules), len(accounts))
    course = Course(
        steps=steps,
        along=np.asarray(periods["along"], np.float64).reshape(shape),
        square=np.asarray(periods["norm"], np.float64).reshape(shape) ** 2,
        change_square=derived.array("period_change_square"),
    )
    losses = None
    if facts["evaluation"]:
        kinds = tuple(facts["evaluation"]["kinds"])
        readings = derived.table("losses")
        losses = LossSheet(
            kinds=kinds,
            counts=np.array(facts["evaluation"]["counts"], np.int64),
            accounts=accounts,
            modules=modules,
            changes=_numbers(derived.table("accounts"), "change", (len(modules), len(kinds), len(accounts))),
            steps=np.asarray(readings["step"], np.int64)[:: len(kinds)],
            losses=_numbers(readings, "loss", (-1, len(kinds))),
            booked=_numbers(derived.table("course"), "change", (-1, len(kinds), len(accounts))),
        )
    return StoredLedger(
        name=name,
        balance=balance,
        losses=losses,
        course=course,
        facts=facts["about"],
        grade=facts.get("grade", {"name": "exact"}),
        interactions=_read_pairs(derived, facts) if facts.get("interactions_missed") else None,
        examples=derived.table("examples") if facts.get("num_examples") else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentEntry:
    """What one document did to the weights, over all steps that saw it."""

    id: str
    kind: str
    num_examples: int
    share: float
    """Length along the change of the weights, over that one's own."""
    first_step: int
    last_step: int


def document_entries(stored: StoredLedger, *, kind: str | None = None) -> list[DocumentEntry]:
    """The documents behind a kind's entry, the largest share (of either sign) first; all documents for no kind.

    RunNotFoundError where the ledger kept no examples, or none of that kind.
    """
    if stored.examples is None:
        raise RunNotFoundError(
            f"Ledger {stored.name} kept no examples: open it with keep_examples=True, and name them with "
            "ledger.step(labels, ids=…)."
        )
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in stored.examples.to_pylist():
        if kind is None or row["kind"] == kind or row["kind"].startswith(f"{kind}/"):
            name = row["id"] or f"an example of step {row['step']}"
            found.setdefault((name, row["kind"]), []).append((row["step"], row["along"]))
    if not found:
        kinds = ", ".join(sorted(set(stored.examples["kind"].to_pylist())))
        raise RunNotFoundError(f"Ledger {stored.name} has no example of kind {kind!r}; it has {kinds}.")
    entries = [
        DocumentEntry(
            id=name,
            kind=own_kind,
            num_examples=len(uses),
            share=sum(along for _, along in uses),
            first_step=min(step for step, _ in uses),
            last_step=max(step for step, _ in uses),
        )
        for (name, own_kind), uses in found.items()
    ]
    return sorted(entries, key=lambda entry: -abs(entry.share))


def _entries(balance: BalanceSheet, course: Course) -> pa.Table:
    """One row per period, module and account; the first period is the whole run."""
    squares = np.einsum("maa->ma", balance.gram)[None]
    along = np.concatenate([balance.along[None], course.along])
    change = np.array([balance.change_square.sum(), *course.change_square.sum(1)])
    first, last = [1, *(course.steps[:-1] + 1)], [balance.num_steps, *course.steps[1:]]
    table = _grid(
        {"period": range(len(along)), "module": balance.modules, "account": balance.accounts},
        {
            "norm": np.sqrt(np.maximum(np.concatenate([squares, course.square]), 0)),
            "along": along,
            "share": along / np.maximum(change, np.finfo(float).tiny)[:, None, None],
        },
    )
    number = np.asarray(table["period"])
    return (
        table.drop_columns("period")
        .append_column("first_step", pa.array(np.array(first)[number]))
        .append_column("last_step", pa.array(np.array(last)[number]))
    )


def _loss_tables(losses: LossSheet) -> dict[str, pa.Table]:
    ends = losses.steps[1:].tolist()
    return {
        "accounts": _grid(
            {"module": losses.modules, "kind": losses.kinds, "account": losses.accounts}, {"change": losses.changes}
        ),
        "course": _grid(
            {"last_step": ends, "kind": losses.kinds, "account": losses.accounts}, {"change": losses.booked}
        ),
        "losses": _grid({"step": losses.steps.tolist(), "kind": losses.kinds}, {"loss": losses.losses}),
    }


def _pair_tables(pairs: InteractionSheet) -> dict[str, pa.Table]:
    three = {"kind": pairs.kinds, "later": pairs.accounts, "earlier": pairs.accounts}
    return {
        "pairs": _grid(three, {"across": pairs.across, "within": pairs.within}),
        "first": _grid({"kind": pairs.kinds, "account": pairs.accounts}, {"change": pairs.first}),
    }


def _read_pairs(derived: Derived, facts: Mapping[str, Any]) -> InteractionSheet:
    kinds, accounts = tuple(facts["evaluation"]["kinds"]), tuple(facts["accounts"])
    table, shape = derived.table("pairs"), (len(kinds), len(accounts), len(accounts))
    return InteractionSheet(
        kinds=kinds,
        accounts=accounts,
        first=_numbers(derived.table("first"), "change", shape[:2]),
        across=_numbers(table, "across", shape),
        within=_numbers(table, "within", shape),
        missed=np.array(facts["interactions_missed"], np.float64),
    )


def _grid(axes: Mapping[str, Any], values: Mapping[str, np.ndarray]) -> pa.Table:
    """Arrays over named axes as one row per cell, the last axis running fastest."""
    names = [list(own) for own in axes.values()]
    places = np.meshgrid(*[np.arange(len(own)) for own in names], indexing="ij")
    columns: dict[str, Any] = {
        axis: pa.array(own).take(pa.array(place.ravel())) if own else pa.array([], pa.string())
        for (axis, own), place in zip(zip(axes, names, strict=True), places, strict=True)
    }
    return pa.table(columns | {name: pa.array(value.ravel()) for name, value in values.items()})


def _numbers(table: pa.Table, column: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(table[column], np.float64).reshape(shape)


def _origin(ledger: Ledger | SketchedLedger) -> str:
    """What a ledger was computed from: its weights at the opening, its kinds, and how many steps it has seen."""
    digest = hashlib.sha256(json.dumps([list(ledger.chart.kinds), ledger.num_steps]).encode())
    for name, start in sorted(ledger.begun_with().items()):
        digest.update(name.encode())
        digest.update(start.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Run]:
    """The run at a path, held for writing; one that holds no documents is made where there is none."""
    if Run.exists(path):
        run = Run.open(path)
        with run.store.lock():
            yield run
        return
    with Run.create(path, config={"data": {"dataset": None}}, versions={"quantascope": version("quantascope")}) as run:
        yield run
