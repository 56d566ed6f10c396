"""Results as plain text, for the terminal. White space in tokens is made visible, as in the report."""

from typing import TYPE_CHECKING, Any

from ...storage.migrations import SCHEMA_VERSION
from ..answers import Trace, Unit

if TYPE_CHECKING:
    from ...jobs.repair import Repaired
    from ...jobs.verify import Finding, Verified


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
        f"{info['path']} ({_schema_text(info)}, quantascope {info['versions']['quantascope']})",
        (
            f"data: {info['dataset']}: {info['documents']} documents, {info['tokens']} tokens, "
            f"{info['skipped_rows']} rows skipped"
        ),
    ]
    for name, rows in info["row_sets"].items():
        lines.append(
            f"rows {name}: {rows['units']} units × {rows['dim']} ({rows['projection']}, {rows['blocks']} blocks, "
            f"{_covered(rows['covered_share'])} of the parameters), {rows['collected']}, model {rows['model']}"
            + ("" if rows["goes_on"] else f"; of schema {rows['schema_version']}: to be read, not to be collected on")
        )
    lines.append(f"quanta: {', '.join(info['quanta']) or 'none yet'}")
    return "\n".join(lines)


def _covered(share: float | None) -> str:
    """Of imported rows nobody says it."""
    return "an unknown share" if share is None else f"{share:.0%}"


def _schema_text(info: dict[str, Any]) -> str:
    version = info["schema_version"]
    return f"schema {version}" + (f", this version writes {SCHEMA_VERSION}" if version < SCHEMA_VERSION else "")


def verified_text(run: str, found: "Verified") -> str:
    """What is wrong with a run's files, each with what mends it; then what does no harm."""
    lines = [f"{run}: {found.num_files:,} files read through, {found.num_bytes / 1e6:,.1f} MB"]
    lines += [_finding_text(f) for f in found.findings]
    lines += ["", "no harm is in these:", *map(_finding_text, found.notes)] if found.notes else []
    return "\n".join([*lines, _verdict(found)])


def repaired_text(run: str, done: "Repaired") -> str:
    """What was made again and how it is proved, what was removed, and what is left."""
    lines = [f"mended    {m.what}: {m.detail}" for m in done.mended]
    lines += [f"removed   {f.file}: {f.detail}\n          to have it again: {f.mend}" for f in done.removed]
    lines += ["left:", *map(_finding_text, done.left)] if done.left else []
    return "\n".join(lines or [f"{run}: nothing is damaged"])


def _verdict(found: "Verified") -> str:
    return "every file is as it was written" if found.is_clean else f"{len(found.findings)} files are not as written"


def _finding_text(found: "Finding") -> str:
    """File names are escaped: a foreign file may have any."""
    name = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in found.file)
    return f"{found.kind:<10}{name}: {found.detail}\n          to mend it: {found.mend}"
