"""When quanta formed, as plain text and as JSON."""

from collections.abc import Sequence
from math import isnan
from typing import Any

from ...jobs.change.emerge import StoredEmergence

_LABEL = 34


def emergence_text(found: StoredEmergence, labels: Sequence[str], *, limit: int) -> str:
    """The order, the phase changes, then quanta in the order of their times, and what was forgotten."""
    facts, rows = found.facts, found.quanta.to_pylist()
    steps = facts["steps"]
    counts = {s: sum(row["status"] == s for row in rows) for s in ("learned", "early", "late", "flat")}
    summary = (
        f"{len(rows)} quanta over {len(steps)} checkpoints, steps {steps[0]:,} to {steps[-1]:,}: {counts['learned']} "
        f"learned, {counts['early']} begun before the first, {counts['late']} not done at the last, {counts['flat']} "
        "without a transition"
    )
    lines = [summary]
    if facts["order"]:
        lines.append(facts["order"]["sentence"])
    lines += [
        f"phase change between steps {b['first_step']:,} and {b['last_step']:,}: {b['count']} quanta form there, "
        f"{b['expected']:.1f} by the gaps around it (p = {b['p_value']:.2g})"
        for b in facts["bursts"]
    ]
    timed = sorted((row for row in rows if row["status"] != "flat"), key=lambda row: row["midpoint"])
    lines += ["", f"{'quantum':>7}  {'label':<{_LABEL}} {'size':>6} {'step':>9} {'95 % interval':>19} {'drop':>6}"]
    lines += [_line(row, labels[row["quantum"]]) for row in timed[:limit]]
    if len(timed) > limit:
        lines.append(f"… and {len(timed) - limit} more (--limit, or --json for all)")
    lost = sorted((row for row in rows if (row["forgotten_low"] or 0) > 0), key=lambda row: -row["forgotten"])
    if lost:
        lines += ["", f"forgotten since their best checkpoint: {len(lost)} quanta"]
        lines += [
            f"{row['quantum']:>7}  {_short(labels[row['quantum']]):<{_LABEL}} +{row['forgotten']:.3f} nats "
            f"({row['forgotten_low']:.3f} to {row['forgotten_high']:.3f})"
            for row in lost[:limit]
        ]
    return "\n".join(lines)


def emergence_json(found: StoredEmergence) -> dict[str, Any]:
    """The same as JSON; numbers that are not known are null."""
    return {"facts": found.facts, "quanta": [_known(row) for row in found.quanta.to_pylist()]}


def _line(row: dict[str, Any], label: str) -> str:
    interval = f"{row['midpoint_low']:,.0f} to {row['midpoint_high']:,.0f}"
    mark = {"early": " (begun before)", "late": " (not done)"}.get(row["status"], "")
    abrupt = " at once" if row["largest_fall"] > 0.8 else ""
    return (
        f"{row['quantum']:>7}  {_short(label):<{_LABEL}} {row['size']:>6} {row['midpoint']:>9,.0f} {interval:>19} "
        f"{row['drop']:>6.2f}{mark}{abrupt}"
    )


def _short(label: str) -> str:
    label = " ".join(label.split())
    return label if len(label) <= _LABEL else f"{label[: _LABEL - 1]}…"


def _known(row: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and isnan(value) else value for name, value in row.items()}
