"""A comparison of two models as plain text and as JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...jobs.change.compare import StoredComparison

_LABEL = 34


def compare_text(found: StoredComparison, labels: Sequence[str], *, limit: int) -> str:
    """For each model: how many quanta are shared and changed, then those that changed most."""
    facts = found.facts
    lines = [f"{facts['num_units']:,} units under {1 + len(facts['models'])} models ({found.name})"]
    if facts["against"] == "seeds":
        lines.append(f"chance: {len(facts['config']['seeds'])} models that differ in their seed alone")
    else:
        lines.append("chance: documents with flipped signs; what another seed would have changed is not known")
    rows = found.quanta.to_pylist()
    for model, place in facts["models"].items():
        own = [row for row in rows if row["model"] == model]
        lines += ["", *_model(own, place if model == "other" else f"without {model}", labels, limit)]
    if facts["num_shared"] is not None:
        lines += ["", *_matched(found)]
    return "\n".join(lines)


def compare_json(found: StoredComparison) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "name": found.name,
        "facts": found.facts,
        "quanta": found.quanta.to_pylist(),
        "others": found.others.to_pylist(),
    }


def _model(rows: Sequence[Mapping[str, Any]], name: str, labels: Sequence[str], limit: int) -> list[str]:
    counts = {v: sum(row["verdict"] == v for row in rows) for v in ("strengthened", "weakened", "same")}
    units = sum(row["size"] for row in rows)
    mean = sum(row["size"] * row["change"] for row in rows) / units
    summary = (
        f"{name}: {counts['strengthened']} quanta strengthened, {counts['weakened']} weakened, {counts['same']} the "
        f"same; mean loss {mean:+.4f} nats"
    )
    lines = [
        summary,
        f"{'quantum':>7}  {'label':<{_LABEL}} {'size':>6} {'loss':>15} {'change':>8} {'of chance':>9} {'q':>8}",
    ]
    order = sorted(rows, key=lambda row: (row["verdict"] == "same", -abs(row["change"]) / max(row["spread"], 1e-12)))
    for row in order[:limit]:
        mark = "" if row["verdict"] == "same" else f"  {row['verdict']}"
        pair = f"{row['loss_first']:.3f} → {row['loss_other']:.3f}"
        lines.append(
            f"{row['quantum']:>7}  {_short(labels[row['quantum']]):<{_LABEL}} {row['size']:>6} {pair:>15} "
            f"{row['change']:>+8.3f} {row['change'] / max(row['spread'], 1e-12):>+9.1f} {row['q_value']:>8.2g}{mark}"
        )
    if len(order) > limit:
        lines.append(f"… and {len(order) - limit} more (--limit, or --json for all)")
    return lines


def _matched(found: StoredComparison) -> list[str]:
    first, second = found.quanta.to_pylist(), found.others.to_pylist()
    known = [row for row in first if row["partner"] is not None]
    shared = [row for row in known if row["partner"] >= 0]
    lost = [row for row in known if row["partner"] < 0]
    gained = [row for row in second if row["partner"] is not None and row["partner"] < 0]
    summary = (
        f"matched through {found.facts['num_shared']:,} units that both clustered: {len(shared)} quanta shared, "
        f"{len(lost)} lost, {len(gained)} gained (Jaccard above {found.facts['null_jaccard']:.3f}, the 99th percentile "
        "of shuffled units)"
    )
    return [
        summary,
        *(f"  lost: {_numbers(lost)}" for _ in lost[:1]),
        *(f"  gained (numbers of the other run): {_numbers(gained)}" for _ in gained[:1]),
    ]


def _numbers(rows: Sequence[Mapping[str, Any]], limit: int = 20) -> str:
    text = ", ".join(str(row["quantum"]) for row in rows[:limit])
    return text + (f" and {len(rows) - limit} more" if len(rows) > limit else "")


def _short(label: str) -> str:
    label = " ".join(label.split())
    return label if len(label) <= _LABEL else f"{label[: _LABEL - 1]}…"
