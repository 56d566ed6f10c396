"""What the client answers with: plain values, no library needed to read them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A unit with the words around it."""

    unit: int
    """Its number in the row set; of several row sets, numbered through."""
    quantum: int | None
    """None for units that were not clustered (windows, zero or refused rows)."""
    document: int
    source: str
    """File or data set that the document came from."""
    user_id: str
    first_token: int
    last_token: int
    """Both inclusive; for a token-loss unit the last one is the predicted token."""
    text_start: int
    text_end: int
    """Characters of the predicted token (or of the window) in the document."""
    context: str
    """The text before the predicted token, cut to its last tokens."""
    target: str
    """The predicted token (for a window, its text)."""
    loss: float
    """Nats."""
    labels: dict[str, str | None]
    score: float | None = None
    """Cosine with the quantum's centroid, or with the behaviour that was traced."""
    unit_type: str = "token-loss"
    """What it is: quanta of several row sets have units of several types."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantum:
    """A quantum: what it predicts after what, how big it is, where it lives."""

    id: int
    """Its number: 0 is the most used."""
    label: str
    target: str
    pattern: tuple[str | None, ...]
    """Tokens before the target, oldest first; None where they vary."""
    distinguishing: tuple[str, ...]
    size: int
    use: float
    """Share of the clustered units."""
    mean_loss: float
    coherence: float
    """Mean cosine over all pairs of its rows; NaN for a single one."""
    num_documents: int
    nearest: tuple[tuple[int, float], ...]
    """Nearest quanta, and the cosines of the centroids."""
    exemplars: tuple[int, ...]
    """Units nearest to its centre."""
    edge: tuple[int, ...]
    counterexamples: tuple[int, ...]
    """Nearest units that belong elsewhere."""
    node: int | None = None
    """Its node in the tree; None for quanta that an older version stored."""
    persistence: float | None = None
    """Share of 20 resamples in which its branch comes back; None for a single unit."""
    name: str | None = None
    """A name that a language model gave, if one was asked; nobody checked it."""
    facts: "QuantumMeasures | None" = None
    """What is measured of quanta alone; None at other grains."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantumMeasures:
    """What is known of a quantum beyond its units, each figure with its null where it has one."""

    dimension: float | None
    """Participation ratio of its rows, freed from the projection's share; None where it cannot be told."""
    dimension_low: float | None
    dimension_high: float | None
    """95 % interval; None where it has no upper end."""
    own_share: float
    """Share of its support that comes from each unit's own document: 1 memorised, near 0 general."""
    own_share_null: float
    """The same if units of one document were no more alike than others."""
    self_influence: float
    """Of its median unit, over that of the median unit of all."""
    self_influence_null: tuple[float, float] | None
    """Where the median of as many units drawn from all lies in 95 % of draws; None from an older version."""
    monogenic: float | None
    """Mean over its units of the greatest squared weight's share: 1 where one quantum says it all."""
    monogenic_null: float | None
    """The same of units that use this quantum alone by construction."""
    persistence_null: float | None
    """What 95 % of branches of like size do not exceed where every column is shuffled by itself."""
    community: int
    """Group of quanta that interact; -1 where there were too many quanta to look."""
    interferes: tuple[tuple[int, float, float], ...]
    """Quanta that it unlearns: number, mean cosine, and the least that the null gives (3 standard deviations)."""
    used_with: tuple[tuple[int, int, float], ...]
    """Quanta of the same documents: number, documents shared, and how many the null expects."""
    address: dict[str, float]
    """Share of the squared norm of its gradients in each block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeNode:
    """A merge of the tree, or the quantum at a leaf of it."""

    node: int
    sides: tuple[int, int] | None
    """The two nodes that it joins; None where the tree ends."""
    size: int
    cosine: float | None
    """Mean cosine between the two sides."""
    persistence: float | None
    """Share of 20 resamples in which the branch comes back."""
    quantum: int | None
    """The quantum that it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ancestor:
    """The same skill at another grain: a node of the tree that holds what was asked for."""

    node: int
    label: str
    size: int
    cosine: float | None
    persistence: float | None
    quantum: int | None
    """The quantum that it is, if it is one."""
    share: float
    """Of the units asked for, the share that lies under it."""
    expected: float
    """The share that as many units drawn from all would have there: the null."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meetings:
    """How quanta meet in gradient space."""

    mean_cosine: "np.ndarray"
    """[quantum, quantum] float64: mean cosine of their rows; NaN on the diagonal. Negative: one unlearns the other."""
    null_mean: float
    """What units dealt out at random give, for any pair."""
    null_spread: "np.ndarray"
    """[quantum, quantum]: standard deviation of the same."""
    community: tuple[int, ...]
    modularity: float | None
    modularity_null: float | None
    """Mean over 20 random graphs of the same degrees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitCode:
    """The quanta that one unit uses."""

    unit: int
    quanta: tuple[tuple[int, float], ...]
    """Quantum and weight, greatest first; empty where none rises above noise."""
    monogenic: float | None
    """Greatest squared weight over their sum: 1 for one quantum, 1/2 for two equal ones; None without any."""
    explained: float
    """Share of the row's squared norm that they explain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedQuantum:
    """A quantum's part in a behaviour, with its 95 % interval."""

    quantum: int
    label: str
    weight: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A behaviour, the quanta that it uses, and the training units behind it."""

    prompt: str
    completion: str
    loss: float
    """Mean loss of the completion's tokens, in nats."""
    prompt_tokens: tuple[str, ...]
    completion_tokens: tuple[str, ...]
    contributions: tuple[float, ...]
    """Share of each token of prompt and completion in the gradient; they add up to 1."""
    quanta: tuple[UsedQuantum, ...]
    units: tuple[Unit, ...]
    """Supporting units, best first."""
    opposing: tuple[Unit, ...]
    windows: tuple[Unit, ...]
    """Whole windows by the same score, where the run has window rows."""
    lexical: tuple[Unit, ...]
    """What a search by words gives instead."""
    novelty: float
    """Share of training units that are less strange than this behaviour, from 0 to 1."""
