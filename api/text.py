"""Results as plain text, for the terminal. White space in tokens is made visible, as in the report."""

from typing import Any

from .client import Trace, Unit


def visible(text: str) -> str:
    """A blank as ·, a line break as ↵, a tab as →; other controls as escapes."""
    shown = text.replace(" ", "·").replace("\n", "↵").replace("\t", "→")
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in shown)


def unit_text(unit: Unit) -> str:
    """One line: score, source, the context's end and the predicted token in brackets."""
    context = visible(unit.context)[-60:]
    return f"{unit.score or 0:6.3f}  {unit.source[-28:]:<28} {context:>60} [{visible(unit.target)[:40]}]"


def trace_text(trace: Trace) -> str:
    """The quanta, the supporting and opposing units, what words alone give, and novelty."""
    lines = [f"{visible(trace.prompt)} [{visible(trace.completion)}]  loss {trace.loss:.3f} nats", "", "quanta"]
    lines += [
        f"{q.weight:6.3f}  (95 % {q.low:.3f} to {q.high:.3f})  {q.quantum:>4}  {visible(q.label)}" for q in trace.quanta
    ]
    for title, units in (
        ("supporting units", trace.units),
        ("opposing units", trace.opposing),
        ("windows", trace.windows),
        ("by words alone (BM25)", trace.lexical),
    ):
        if units:
            lines += ["", title, *map(unit_text, units)]
    lines += ["", f"novelty: stranger than {trace.novelty:.0%} of the training units"]
    return "\n".join(lines)


def info_text(info: dict[str, Any]) -> str:
    """What a run holds."""
    lines = [
        f"{info['path']} (schema {info['schema_version']}, quantascope {info['versions']['quantascope']})",
        (
            f"data: {info['dataset']}: {info['documents']} documents, {info['tokens']} tokens, "
            f"{info['skipped_rows']} rows skipped"
        ),
    ]
    for name, rows in info["row_sets"].items():
        lines.append(
            f"rows {name}: {rows['units']} units × {rows['dim']} ({rows['projection']}, {rows['blocks']} blocks, "
            f"{rows['covered_share']:.0%} of the parameters), {rows['collected']}, model {rows['model']}"
        )
    lines.append(f"quanta: {', '.join(info['quanta']) or 'none yet'}")
    return "\n".join(lines)
