"""What was computed from something that the run does not hold any more: refused when asked, and so named beforehand."""

from ..errors import QuantascopeError
from .derived import DERIVED_ROOMS, Derived
from .run import Run

_OF_ROWS = ("index", "quanta", "curves")
_OF_NOTHING_HERE = ("ledger",)
"""A ledger is an account of a training, of which the run holds nothing else."""


def stale_parts(run: Run) -> list[tuple[str, str, str]]:
    """Room, name and source (rows or quanta) of each derived folder whose source changed, or is gone.

    What cannot be judged, since its own record or its source's is damaged, is left out.
    """
    rows, quanta = _of_rows(run), _of_quanta(run)
    found = []
    for room in DERIVED_ROOMS:
        for name in run.derived_names(room) if room not in _OF_NOTHING_HERE else ():
            derived = run.derived(room, name)
            try:
                sources = _row_sources(derived, rows) if room in _OF_ROWS else quanta
                if sources is not None and derived.source not in sources:
                    found.append((room, name, "rows" if room in _OF_ROWS else "quanta"))
            except QuantascopeError:
                continue
    return found


def _row_sources(derived: Derived, rows: dict[str, str | None]) -> set[str | None] | None:
    """The fingerprint that a folder made of rows should carry; None where that cannot be told."""
    facts = derived.facts()
    if "covers" in facts:
        return None  # an index that is added to: it compares block by block, when it is opened
    name = derived.name if derived.room == "curves" else facts.get("rows")
    if name in rows and rows[name] is None:
        return None
    return {rows.get(name)} if name is not None else None


def _of_rows(run: Run) -> dict[str, str | None]:
    """Fingerprint of each row set: empty for one that is not finished, None for one that cannot be read."""
    found: dict[str, str | None] = {}
    for name in run.row_sets():
        try:
            row_set = run.row_set(name)
            found[name] = "" if row_set.missing_blocks() else row_set.fingerprint()
        except QuantascopeError:
            found[name] = None
    return found


def _of_quanta(run: Run) -> set[str | None] | None:
    """Fingerprints of the quanta; None where one cannot be read."""
    try:
        return {run.derived("quanta", name).fingerprint() for name in run.derived_names("quanta")}
    except QuantascopeError:
        return None
