"""A ledger as plain text and as JSON: who moved the weights, who lowered whose loss, what is left."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...attribution.ledger import BalanceSheet, InteractionSheet, LossSheet
from ...attribution.ledger.sheets import sheet_facts
from ...jobs.ledger.keeping import DocumentEntry
from ..report.ledger import flow_lines

_NAME = 24
_FLOWS = 10
_COLUMN = 9
_LEAST = 5e-5


def ledger_text(
    name: str, balance: BalanceSheet, losses: LossSheet | None, *, grade: Mapping[str, Any] | None = None
) -> str:
    """The balance sheet, then the account matrix with its residual, and the strongest flows."""
    lines = [
        f"ledger {name}: {balance.num_steps} steps"
        + (f", {balance.num_skipped} more were skipped" if balance.num_skipped else "")
        + f"; the weights moved by {np.sqrt(balance.change_square.sum()):.4g}",
        "An account of the training as it was, not of what would have been without a kind.",
        *_grade(grade or {}),
        "",
        f"{'who moved the weights':<{_NAME}} {'norm':>{_COLUMN}} {'share':>{_COLUMN}} {'cosine':>{_COLUMN}}",
    ]
    for row in sheet_facts(balance)["accounts"]:
        lines.append(
            f"{_short(row['account']):<{_NAME}} {row['norm']:>{_COLUMN}.4g} {row['share']:>{_COLUMN}.1%} "
            f"{row['cosine']:>{_COLUMN}.3f}"
        )
    lines.append(f"{'residual':<{_NAME}} {balance.residual:>{_COLUMN}.1e} of the change's norm")
    if losses is not None and len(losses.steps) > 1:
        lines += ["", *_matrix(losses)]
        lines += ["", "strongest flows between kinds, in thousandths of a nat:", *flow_lines(losses, _FLOWS)]
    return "\n".join(lines)


def document_lines(entries: Sequence[DocumentEntry]) -> list[str]:
    """The documents behind an entry, one line each."""
    lines = [f"{'documents behind it':<{_NAME}} {'kind':<{_NAME}} {'share':>{_COLUMN}} {'examples':>{_COLUMN}}  steps"]
    for entry in entries:
        steps = str(entry.first_step) if entry.num_examples == 1 else f"{entry.first_step} to {entry.last_step}"
        lines.append(
            f"{_short(entry.id):<{_NAME}} {_short(entry.kind):<{_NAME}} {entry.share:>{_COLUMN}.3%} "
            f"{entry.num_examples:>{_COLUMN}}  {steps}"
        )
    return lines


def _grade(grade: Mapping[str, Any]) -> list[str]:
    """What a sketched ledger takes for granted."""
    if grade.get("name") != "sketched":
        return []
    lines = [
        f"Sketched: seen through {grade['k']} random signs on each axis; the residual says what that and Adam cost."
    ]
    lines += [f"Assumed: {grade['assumption']}."] if grade["assumption"] else []
    audit = grade.get("audit")
    if audit and audit["steps"]:
        lines.append(
            f"Held against the exact grade on {audit['steps']} sampled steps, one kind each: what it did in its step "
            f"is missed by {audit['residual']:.1%} (norm {audit['norm']:.2f} of the exact one's)."
        )
    else:
        lines.append("No step was held against the exact grade.")
    return lines + ([f"Without an account: {', '.join(grade['uncovered'])}."] if grade["uncovered"] else [])


def pair_lines(pairs: InteractionSheet) -> list[str]:
    """The strongest interactions, and what they leave."""
    both, accounts = pairs.pairs, pairs.accounts
    places = [(k, a, b) for k in range(len(pairs.kinds)) for a in range(len(accounts)) for b in range(a + 1)]
    places = sorted(places, key=lambda place: -abs(both[place]))[:_FLOWS]
    lines = ["strongest interactions, in thousandths of a nat (negative: together they lowered it further):"]
    for kind, a, b in places:
        names = accounts[a] if a == b else f"{accounts[b]} and {accounts[a]}"
        lines.append(
            f"  {names} on {pairs.kinds[kind]}: {1000 * both[kind, a, b]:+.1f}, of which within periods "
            f"{1000 * pairs.within[kind, a, b] * (1 if a == b else 2):+.1f}"
        )
    return [*lines, f"  missed: at most {pairs.missed.max():.1e} of a gradient's change"]


def pairs_json(pairs: InteractionSheet) -> dict[str, Any]:
    """The same as JSON, whole."""
    return {
        "kinds": list(pairs.kinds),
        "accounts": list(pairs.accounts),
        "first": pairs.first.tolist(),
        "across": pairs.across.tolist(),
        "within": pairs.within.tolist(),
        "missed": pairs.missed.tolist(),
    }


def ledger_json(name: str, balance: BalanceSheet, losses: LossSheet | None, about: dict[str, Any]) -> dict[str, Any]:
    """The same as JSON."""
    value: dict[str, Any] = {"name": name, "about": about, "weights": sheet_facts(balance), "losses": None}
    if losses is not None:
        value["losses"] = {
            "kinds": list(losses.kinds),
            "accounts": list(losses.accounts),
            "matrix": losses.matrix.tolist(),
            "change": losses.total.tolist(),
            "residual": losses.residual.tolist(),
            "path": losses.path.tolist(),
            "missed": losses.missed.tolist(),
            "steps": losses.steps.tolist(),
        }
    return value


def _matrix(losses: LossSheet) -> list[str]:
    """One row per kind whose loss it is, one column per account; in thousandths of a nat."""
    is_whole = np.allclose(losses.matrix, losses.booked.sum(0), rtol=1e-6, atol=1e-9)  # else of some modules only
    names = [*losses.accounts, *(("change", "residual") if is_whole else ())]
    numbers = losses.matrix
    if is_whole:
        numbers = np.concatenate([numbers, losses.total[:, None], losses.residual[:, None]], axis=1)
    numbers = np.where(np.abs(numbers) < _LEAST, 0.0, 1000 * numbers)  # so that nothing is shown as −0.0
    title = (
        f"who lowered whose loss, steps {losses.steps[0]} to {losses.steps[-1]}: change of the row's held-out loss by "
        "the column's data, in thousandths of a nat (negative: it helped)"
    )
    lines = [
        title,
        "columns: " + ", ".join(f"{_column(i)} {name}" for i, name in enumerate(names)),
        " " * _NAME + "".join(f"{_column(i):>{_COLUMN}}" for i in range(len(names))),
    ]
    for kind, row in zip(losses.kinds, numbers, strict=True):
        lines.append(f"{_short(kind):<{_NAME}}" + "".join(f"{value:>{_COLUMN}.1f}" for value in row))
    if is_whole:
        worst = float((losses.missed / np.maximum(losses.path, np.finfo(float).tiny)).max())
        lines.append(f"residual: at most {worst:.1e} of a kind's path, Σ |change| over {len(losses.steps) - 1} periods")
    return lines


def _column(number: int) -> str:
    return f"[{number}]"


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"…{name[1 - _NAME :]}"
