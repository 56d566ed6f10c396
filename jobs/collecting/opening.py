"""A collection and the run that it goes into: what stands there already must be what is asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from ...storage.checked import require_same
from ...storage.rowset import RowSet
from ...storage.run import Run
from ..models.model import LoadedModel
from .collection import Collection


def earlier_plans(collection: Collection) -> list[dict[str, Any]]:
    """Plans of the run's row sets, this one's first: rows of one run are comparable where they can be.

    RunMismatchError where this row set itself is one that this version cannot go on with.
    """
    if not Run.exists(collection.out):
        return []
    run = Run.open(collection.out)
    names = sorted(run.row_sets(), key=lambda name: name != collection.set_name)
    if collection.set_name in names:
        run.row_set(collection.set_name).require_current()
    row_sets = [run.row_set(name) for name in names]
    return [row_set.plan for row_set in row_sets if row_set.is_current]


@contextmanager
def open_run(collection: Collection, loaded: LoadedModel) -> Iterator[Run]:
    """The collection's run, made or gone on with, and held for writing."""
    data = asdict(collection.data)
    config = {
        "data": data,
        "tokenizer_fingerprint": loaded.tokenizer_fingerprint,
        "keep_text": collection.keep_text,
    }
    versions = {
        "quantascope": _version("quantascope"),
        "torch": _version("torch"),
        "transformers": _version("transformers"),
    }
    with Run.create(collection.out, config=config, model=asdict(collection.model), versions=versions) as run:
        yield run


def require_same_plan(row_set: RowSet, plan: dict[str, Any]) -> None:
    """Refuse, with both sides, to go on with a row set that was planned otherwise."""
    if row_set.planned:
        require_same(
            {key: row_set.plan[key] for key in plan},
            plan,
            f"Row set {row_set.name!r}",
            "Choose another --name, or remove it with `quantascope rm RUN --rows NAME`.",
        )


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
