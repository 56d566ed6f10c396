"""When quanta formed, as plain text and as JSON."""

from collections.abc import Sequence
from math import isnan
from typing import Any

from ...jobs.change.emerge import StoredEmergence

_LABEL = 34


def emergence_text(found: StoredEmergence, labels: Sequence[str], *, limit: int) -> str:
    """The order, the phase changes, then quanta in the order of their times, and what was forgotten.

    Over sizes: the whole mean loss and its fall, then the same with numbers of parameters for times.
    """
    facts, rows = found.facts, found.quanta.to_pylist()
    sizes = facts.get("over") == "sizes"
    lines = [_summary(facts, rows, sizes=sizes)]
    if sizes:
        lines += _whole(facts)
    if facts["order"]:
        lines.append(facts["order"]["sentence"])
    if facts.get("monogenic"):
        lines.append(facts["monogenic"]["sentence"])
    lines += [
        f"phase change between steps {b['first_step']:,} and {b['last_step']:,}: {b['count']} quanta form there, "
        f"{b['expected']:.1f} by the gaps around it (p = {b['p_value']:.2g})"
        for b in facts.get("bursts", [])
    ]
    timed = sorted((row for row in rows if row["status"] != "flat"), key=lambda row: row["midpoint"])
    lines += ["", *(_lines_over_sizes(timed[:limit], labels, facts) if sizes else _lines(timed[:limit], labels))]
    if len(timed) > limit:
        lines.append(f"… and {len(timed) - limit} more (--limit, or --json for all)")
    lost = sorted((row for row in rows if (row["forgotten_low"] or 0) > 0), key=lambda row: -row["forgotten"])
    if lost:
        what = "worse in the largest model than in their best" if sizes else "forgotten since their best checkpoint"
        lines += ["", f"{what}: {len(lost)} quanta"]
        lines += [
            f"{row['quantum']:>7}  {_short(labels[row['quantum']]):<{_LABEL}} +{row['forgotten']:.3f} nats "
            f"({row['forgotten_low']:.3f} to {row['forgotten_high']:.3f})"
            for row in lost[:limit]
        ]
    return "\n".join(lines)


def emergence_json(found: StoredEmergence) -> dict[str, Any]:
    """The same as JSON; numbers that are not known are null."""
    return {"facts": found.facts, "quanta": [_known(row) for row in found.quanta.to_pylist()]}


def _summary(facts: dict[str, Any], rows: Sequence[dict[str, Any]], *, sizes: bool) -> str:
    axis = facts["num_parameters"] if sizes else facts["steps"]
    over = "{} models, {:,} to {:,} parameters" if sizes else "{} checkpoints, steps {:,} to {:,}"
    counts = {s: sum(row["status"] == s for row in rows) for s in ("learned", "early", "late", "flat")}
    return (
        f"{len(rows)} quanta over {over.format(len(axis), axis[0], axis[-1])}: {counts['learned']} learned, "
        f"{counts['early']} begun before the first, {counts['late']} not done at the last, {counts['flat']} "
        "without a transition"
    )


def _whole(facts: dict[str, Any]) -> list[str]:
    """The mean loss over all clustered units at each size, and its fall."""
    pairs = zip(facts["num_parameters"], facts["mean_loss"], strict=True)
    lines = ["", f"{'parameters':>15}  mean loss", *(f"{size:>15,}  {loss:>9.4f}" for size, loss in pairs)]
    return [*lines, "", facts["scaling"]["sentence"], facts["scope"]]


def _lines(rows: Sequence[dict[str, Any]], labels: Sequence[str]) -> list[str]:
    lines = [f"{'quantum':>7}  {'label':<{_LABEL}} {'size':>6} {'step':>9} {'95 % interval':>19} {'drop':>6}"]
    for row in rows:
        lines.append(
            f"{_start(row, labels)} {row['midpoint']:>9,.0f} {_interval(row):>19} {row['drop']:>6.2f}{_marks(row)}"
        )
    return lines


def _lines_over_sizes(rows: Sequence[dict[str, Any]], labels: Sequence[str], facts: dict[str, Any]) -> list[str]:
    """With each quantum's part of the fall of the whole mean loss, from the smallest model to the largest."""
    whole = facts["mean_loss"][0] - facts["mean_loss"][-1]
    heading = f"{'parameters':>15} {'95 % interval':>33} {'drop':>6} {'of fall':>8}"
    lines = [f"{'quantum':>7}  {'label':<{_LABEL}} {'size':>6} {heading}"]
    for row in rows:
        part = f"{row['fall'] / whole:.1%}" if whole > 0 else "–"
        middle = f"{row['midpoint']:>15,.0f} {_interval(row):>33}"
        lines.append(f"{_start(row, labels)} {middle} {row['drop']:>6.2f} {part:>8}{_marks(row)}")
    return lines


def _start(row: dict[str, Any], labels: Sequence[str]) -> str:
    return f"{row['quantum']:>7}  {_short(labels[row['quantum']]):<{_LABEL}} {row['size']:>6}"


def _interval(row: dict[str, Any]) -> str:
    return f"{row['midpoint_low']:,.0f} to {row['midpoint_high']:,.0f}"


def _marks(row: dict[str, Any]) -> str:
    mark = {"early": " (begun before)", "late": " (not done)"}.get(row["status"], "")
    return mark + (" at once" if row["largest_fall"] > 0.8 else "")


def _short(label: str) -> str:
    label = " ".join(label.split())
    return label if len(label) <= _LABEL else f"{label[: _LABEL - 1]}…"


def _known(row: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and isnan(value) else value for name, value in row.items()}
