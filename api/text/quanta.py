"""What `cluster` found, as plain text: each figure with its interval and its null."""

from collections.abc import Mapping, Sequence
from typing import Any

from .shown import visible


def quanta_text(
    run: str, name: str, facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], *, asked: int | None
) -> str:
    """The number of quanta, evidence beside rivals, and what holds for all of them together."""
    lines = [f"{facts['num_quanta']} quanta of {facts['num_units']:,} units in {run} ({name})"]
    if asked is not None and asked != facts["num_quanta"]:
        lines.append(f"{asked} were asked for: the others would have been empty")
    lines += [f"{'  ' + row['name']:<24} next token {_evidence(row)}" for row in rows if "next_token" in row]
    if facts["rank_frequency"]:
        lines.append(facts["rank_frequency"]["sentence"])
        if facts["rank_frequency"].get("envelope"):
            lines.append(facts["rank_frequency"]["envelope"]["sentence"])
    lines += together_sentences(facts)
    if facts["names"]:
        lines.append(names_sentence(facts["names"]))
    return "\n".join(lines)


def together_sentences(facts: Mapping[str, Any]) -> list[str]:
    """Persistence, stability, codes, interference, communities and co-use, each beside its null."""
    back, codes = facts["persistence"], facts["codes"]
    lines = [
        (
            f"{back['num_back']} of {back['num_quanta']} quanta of five units and more come back in "
            f"{back['least_share']:.0%} of {back['num_resamples']} halves of the documents "
            f"({back['null_back']} of {back['null_branches']} branches of shuffled columns)."
        )
    ]
    if facts["stability"]:
        lines.append(stability_sentence(facts["stability"]))
    several = (
        f"{codes['share_several']:.0%} of the units use several quanta (claimed of units that use one: "
        f"{codes['null_share_several']:.0%})"
    )
    if codes.get("null_mean_monogenic") is not None:
        several += f"; monogenic score {codes['mean_monogenic']:.2f} ({codes['null_mean_monogenic']:.2f})"
    lines.append(several + ".")
    if facts.get("memorised") and facts["memorised"]["median_own_share"] is not None:
        lines.append(_memorised_sentence(facts["memorised"]))
    met, used = facts["interference"], facts["co_use"]
    if met["null_share_below"] is not None:
        lines.append(
            f"{met['share_below']:.1%} of the pairs of quanta interfere (mean cosine {met['beyond']:g} standard "
            f"deviations below chance); of shuffled quanta {met['null_share_below']:.2%}."
        )
    if facts["communities"] and facts["communities"]["null_mean"] is not None:
        groups = facts["communities"]
        lines.append(
            f"{groups['num_communities']} groups of quanta that interact among themselves, and {groups['num_alone']} "
            f"quanta alone: modularity {groups['modularity']:.2f} (random graphs of the same degrees "
            f"{groups['null_mean']:.2f}, at most {groups['null_max']:.2f})."
        )
    lines.append(
        f"{used['share_beyond']:.1%} of the pairs share more documents than 99 % of chance has them share (chance "
        f"itself {used['null_beyond']:.1%}; {used['num_documents']:,} documents)."
    )
    return lines


def _memorised_sentence(found: Mapping[str, Any]) -> str:
    return (
        f"The median quantum of five units and more has {found['median_own_share']:.0%} of its support from each "
        f"unit's own document (its sizes alone: {found['median_own_share_null']:.0%}); "
        f"{found['num_influential']} of {found['num_quanta']} have more self-influence than as many units drawn from "
        f"all (chance: {found['expected_influential']:.1f})."
    )


def stability_sentence(found: Mapping[str, Any]) -> str:
    """Adjusted Rand indices between clusterings that should agree."""
    halves = ", ".join(f"{v:.2f}" for v in found["halves"])
    null = ", ".join(f"{v:.2f}" for v in found["null_halves"])
    across = "".join(f"; rows {name!r}: {v:.2f}" for name, v in found["projections"].items())
    return (
        f"Stability (adjusted Rand index): halves of the documents {halves} (random directions {null}), another seed "
        f"{found['other_seed']:.2f}{across}."
    )


def names_sentence(names: Mapping[str, Any]) -> str:
    """Who gave names, and what was left out."""
    text = (
        f"Names were given by {visible(names['model'])} at {names['endpoint']} and checked by nobody: {names['given']}"
    )
    if names["left_out"]:
        text += f"; {names['left_out']} left out ({visible(names['reason'] or 'no answer')})"
    return text + "."


def _evidence(row: Mapping[str, Any]) -> str:
    found = row["next_token"]
    return (
        f"{found['value']:.3f} (95 % {found['low']:.3f} to {found['high']:.3f}; "
        f"99th percentile of shuffles {found['null_99']:.3f})"
    )
