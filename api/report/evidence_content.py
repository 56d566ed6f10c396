"""What the quanta are worth, as a report says it: no figure without its null."""

from typing import Any

import numpy as np

from ..text.quanta import names_sentence, together_sentences
from .payload import Band, Evidence, EvidenceRow, Fit, Measure, Measured, RankFrequency
from .source import Source


def together(source: Source) -> tuple[str, ...]:
    """What holds for all quanta together, one sentence each."""
    facts = source.quanta.facts
    if "interference" not in facts:
        return ()
    return (*together_sentences(facts), *([names_sentence(facts["names"])] if facts["names"] else []))


def evidence(source: Source) -> Evidence | None:
    """The quanta beside their rivals; None where nothing was measured."""
    rows = source.evidence_facts["rows"]
    if not rows:
        return None
    return Evidence(
        sentence=(
            "Each figure is measured without a vote of the unit's own document, with a 95 % interval over them; "
            f"the null is the 99th percentile of {source.evidence_facts['num_shuffles']} shuffles of the clusters."
        ),
        first=Measure(
            name="next token",
            definition="How often the commonest target among a unit's cluster, in other documents, is its own.",
            caveat="Clusters by target token would be right by construction, so they are left out.",
            command=f"quantascope cluster {source.run.name}",
        ),
        second=Measure(
            name="role of equal tokens",
            definition=(
                "How often the commonest syntactic role among units of the same target token and cluster, in other "
                "documents, is the unit's own."
            ),
            caveat="Shuffled within each target token, so what the token alone gives away does not count.",
        ),
        plain=Measure(
            name="role information",
            definition="Adjusted mutual information of role and cluster within each target token.",
            caveat="0 for unrelated labels, 1 for equal partitions.",
        ),
        rows=tuple(
            EvidenceRow(
                name=row["name"],
                first=_measured(row.get("next_token")),
                second=_measured(row.get("role")),
                plain=row.get("role_information"),
                ours=row["name"] == "quanta",
            )
            for row in rows
        ),
    )


def rank_frequency(source: Source) -> RankFrequency:
    """Sizes by rank, and the fit where there are quanta enough for one."""
    sizes = np.array(source.quanta.table["size"].to_pylist(), np.float64)
    found = source.quanta.facts["rank_frequency"]
    if found is None:
        return RankFrequency(
            sizes=sizes, quantum=np.arange(len(sizes)), sentence="Too few quanta of five units for a fit."
        )
    null = (_floats(found["null_low"]), _floats(found["null_high"]))
    fitted = slice(found["first_rank"] - 1, found["last_rank"])
    return RankFrequency(
        sizes=sizes,
        quantum=np.arange(len(sizes)),
        fit=Fit(
            slope=found["slope"],
            low=found["slope_low"],
            high=found["slope_high"],
            intercept=found["intercept"] / np.log(10),
            first_rank=found["first_rank"],
            last_rank=found["last_rank"],
        ),
        fit_band=Band(low=_floats(found["line_low"])[fitted], high=_floats(found["line_high"])[fitted]),
        null_band=Band(low=null[0], high=null[1]),
        sentence=found["sentence"],
        alternatives=" ".join([found["alternatives"], (found.get("envelope") or {}).get("sentence", "")]).strip(),
    )


def _measured(found: dict[str, Any] | None) -> Measured | None:
    if found is None:
        return None
    return Measured(value=found["value"], low=found["low"], high=found["high"], null_99=found["null_99"])


def _floats(values: list[float | None]) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in values], np.float64)
