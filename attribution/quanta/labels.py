"""Names for quanta, from the tokens before their units' targets.

Knows strings and assignments only. Whitespace in tokens is kept as it is (whoever shows a label makes it visible);
other control and formatting characters are escaped. All of it is untrusted text: escape it where it is shown.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int
from scipy.sparse import csr_array

from ...errors import ConfigurationError

GAP = "…"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelConfig:
    """How labels are made."""

    num_positions: int = 6
    """Positions before the target that the pattern looks at."""
    min_share: float = 0.5
    """Share of a quantum's units that a token needs at an offset to stand in the pattern, in (0, 1]."""
    num_context_tokens: int = 32
    """Last tokens of each context that count for the top tokens."""
    num_top_tokens: int = 5
    """Top tokens kept for each quantum."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.num_positions < 1 or self.num_context_tokens < 1 or self.num_top_tokens < 1:
            raise ConfigurationError("num_positions, num_context_tokens and num_top_tokens must be at least 1")
        if not 0 < self.min_share <= 1:
            raise ConfigurationError(f"min_share is {self.min_share}; a share lies above 0 and up to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantumLabel:
    """The name of one quantum and what it rests on."""

    quantum: int
    """Its number."""
    phrase: str
    """A short plain name such as `self after def … (`, unlike every other quantum's."""
    target: str
    """The commonest target token."""
    target_share: float
    """Share of the units with that target, in (0, 1]."""
    pattern: tuple[str | None, ...]
    """Token at each of the last positions before the target, earliest first; None for a gap."""
    top_tokens: tuple[str, ...]
    """Context tokens that set it apart (class-based tf–idf, Grootendorst 2022, arXiv 2203.05794), best first."""


def label_quanta(
    contexts: Sequence[Sequence[str]],
    targets: Sequence[str],
    assignments: Int[np.ndarray, " unit"],
    config: LabelConfig | None = None,
) -> list[QuantumLabel]:
    """One label for each quantum 0 … k − 1, from each unit's tokens before the target and its target token.

    Deterministic: ties go to the token that sorts first. Raises ConfigurationError where the three differ in length or
    a quantum has no units.
    """
    config = config or LabelConfig()
    if not len(contexts) == len(targets) == len(assignments):
        raise ConfigurationError(
            f"{len(contexts)} contexts, {len(targets)} targets and {len(assignments)} assignments; one of each per unit"
        )
    units = _units_by_quantum(assignments)
    counts = [
        Counter(escape(token) for unit in members for token in contexts[unit][-config.num_context_tokens :])
        for members in units
    ]
    top = _top_tokens(counts, config.num_top_tokens)
    shares = [_position_shares([contexts[unit] for unit in members], config.num_positions) for members in units]
    labels = [
        _label(quantum, [targets[unit] for unit in members], shares[quantum], top[quantum], config.min_share)
        for quantum, members in enumerate(units)
    ]
    return _tell_apart(labels, shares, counts)


def escape(token: str) -> str:
    """The token with control, formatting, surrogate and private characters as escapes; whitespace stays as it is."""
    if token.isprintable():
        return token
    return "".join(
        char if char.isspace() and char not in "\x1c\x1d\x1e\x1f\x85\u2028\u2029" else _escape_char(char)
        for char in token
    )


def _escape_char(char: str) -> str:
    if unicodedata.category(char)[0] != "C" and char not in "\u2028\u2029":
        return char
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


def _units_by_quantum(assignments: np.ndarray) -> list[np.ndarray]:
    sizes = np.bincount(assignments)
    if not sizes.all():
        raise ConfigurationError(f"quantum {int(sizes.argmin())} has no units; number quanta without gaps")
    return np.split(np.argsort(assignments, kind="stable"), np.cumsum(sizes)[:-1])


def _commonest(counts: Counter[str]) -> tuple[str, int]:
    return min(counts.items(), key=lambda item: (-item[1], item[0]))


def _position_shares(contexts: list[Sequence[str]], num_positions: int) -> list[Counter[str]]:
    """How often each token stands at each offset before the target, earliest first."""
    shares: list[Counter[str]] = []
    for offset in range(num_positions, 0, -1):
        shares.append(Counter(escape(context[-offset]) for context in contexts if len(context) >= offset))
    return shares


def _top_tokens(counts: Sequence[Counter[str]], num_tokens: int) -> list[tuple[str, ...]]:
    """Per class, the tokens with the greatest tf · ln(1 + A / f): A tokens per class on average, f in all classes."""
    vocabulary = sorted({token for count in counts for token in count})
    column = {token: index for index, token in enumerate(vocabulary)}
    rows, columns, values = [], [], []
    for row, count in enumerate(counts):
        total = max(count.total(), 1)
        for token, number in count.items():
            rows.append(row)
            columns.append(column[token])
            values.append((number, number / total))
    if not values:
        return [() for _ in counts]
    numbers, shares = np.array(values).T
    everywhere = np.bincount(columns, weights=numbers, minlength=len(vocabulary))
    average = numbers.sum() / len(counts)
    scores = shares * np.log1p(average / everywhere[columns])
    table = csr_array((scores, (rows, columns)), shape=(len(counts), len(vocabulary)))
    table.sort_indices()
    top = []
    for start, stop in zip(table.indptr[:-1], table.indptr[1:], strict=True):
        best = np.argsort(-table.data[start:stop], kind="stable")[:num_tokens]
        top.append(tuple(vocabulary[index] for index in table.indices[start:stop][best]))
    return top


def _label(
    quantum: int, targets: list[str], shares: list[Counter[str]], top: tuple[str, ...], min_share: float
) -> QuantumLabel:
    target, count = _commonest(Counter(escape(target) for target in targets))
    pattern: list[str | None] = []
    for position in shares:
        token, number = _commonest(position) if position else ("", 0)
        # of all units, so that units with short contexts speak against the pattern
        pattern.append(token if number >= min_share * len(targets) and number else None)
    return QuantumLabel(
        quantum=quantum,
        phrase=_phrase(target, pattern),
        target=target,
        target_share=count / len(targets),
        pattern=tuple(pattern),
        top_tokens=top,
    )


def _phrase(target: str, pattern: Sequence[str | None]) -> str:
    pieces: list[str] = []
    for token in pattern:
        if token is None:
            if pieces and pieces[-1] != GAP:
                pieces.append(GAP)
        else:
            pieces.append(token)
    words = " ".join(_trim(piece) for piece in pieces)
    return f"{_trim(target)} after {words}" if words else _trim(target)


def _trim(token: str) -> str:
    """Without the blank that begins a word in many vocabularies; tokens of whitespace alone stay whole."""
    return token[1:] if token.startswith(" ") and not token.isspace() else token


def _tell_apart(
    labels: list[QuantumLabel], shares: list[list[Counter[str]]], counts: list[Counter[str]]
) -> list[QuantumLabel]:
    """Add to equal phrases what distinguishes them: a token at an offset, a context token, or else a number."""
    told = list(labels)
    groups: dict[str, list[int]] = {}
    for label in labels:
        groups.setdefault(label.phrase, []).append(label.quantum)
    taken = {phrase for phrase, members in groups.items() if len(members) == 1}
    for phrase, members in groups.items():
        if len(members) == 1:
            continue
        contrasts = _top_tokens([counts[quantum] for quantum in members], 8)
        for quantum, contrast in zip(members, contrasts, strict=True):
            rivals = [shares[other] for other in members if other != quantum]
            options = [f"{phrase}, {hint}" for hint in _hints(shares[quantum], rivals, contrast)]
            options += (f"{phrase} ({number})" for number in range(1, len(labels) + 2))
            told[quantum] = replace(labels[quantum], phrase=next(o for o in options if o not in taken))
            taken.add(told[quantum].phrase)
    return told


def _hints(shares: list[Counter[str]], rivals: list[list[Counter[str]]], contrast: Iterable[str]) -> Iterable[str]:
    """Ways to name the difference, best first."""
    candidates = []
    for index, position in enumerate(shares):
        if not position:
            continue
        token, number = _commonest(position)
        share = number / position.total()
        elsewhere = max((rival[index][token] / max(rival[index].total(), 1) for rival in rivals), default=0.0)
        if share >= 0.25 and share - elsewhere >= 0.2:
            candidates.append((elsewhere - share, len(shares) - index, token))
    for _, offset, token in sorted(candidates):
        yield f"often {_trim(token)} {offset} before"
    for token in contrast:
        yield f"near {_trim(token)}"
