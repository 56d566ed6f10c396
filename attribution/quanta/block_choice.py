"""Which blocks of the rows count, and how much: chosen when rows are clustered, not when they are collected.

A row holds one block per parameter or module, side by side. Inner products of rows are sums over blocks, so a block
with weight w counts w times when its columns are multiplied by √w, and one that is left out has its columns dropped.
Knows names and columns; not what a parameter does, beyond its name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int64

from ...errors import ConfigurationError

NOT_IN_PAPER = ("embed", "unembed", "lm_head", "wte", "wpe", "norm", "ln_", "ln1", "ln2", "output_head")
"""Parts of a name that mark what Michaud et al. (arXiv 2303.13506, appendix) leave out: embeddings, the unembedding
and norms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockChoice:
    """Blocks and their weights. The empty choice takes every block as it is."""

    blocks: tuple[str, ...] = ()
    """Patterns such as `*mlp*`; a block counts where one fits. `paper` is all but embeddings, unembedding and norms;
    nothing, or `all`, is every block."""
    weights: tuple[tuple[str, float], ...] = ()
    """Pattern and weight of a block's share in inner products, above 0; the last that fits wins, 1 where none does."""
    scale: Literal["kept", "equal", "unit"] = "kept"
    """What happens to blocks' sizes before they are weighed: `equal` gives every block the same mean share of squared
    norm, `unit` makes every block of every row unit (a block of zero stays zero)."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.scale not in ("kept", "equal", "unit"):
            raise ConfigurationError(f"scale is {self.scale!r}; it is one of kept, equal, unit")
        for pattern, weight in self.weights:
            if not (np.isfinite(weight) and weight > 0):
                raise ConfigurationError(
                    f"the weight of blocks {pattern!r} is {weight}; it must be above 0 (leave blocks out by --blocks)"
                )

    @property
    def is_plain(self) -> bool:
        """Whether rows stay as they are."""
        return not self.weights and self.scale == "kept" and set(self.blocks) <= {"all"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChosenBlocks:
    """A choice applied to one row set's blocks: the columns that stay, and what they are multiplied by."""

    columns: Int64[np.ndarray, " kept"]
    factors: Float[np.ndarray, " kept"]
    """Square roots of the weights, float32."""
    names: tuple[str, ...]
    """The blocks that count."""
    starts: Int64[np.ndarray, " block"] | None = None
    """First kept column of each block, where blocks are made unit; None leaves their sizes."""

    def apply(self, rows: Float[np.ndarray, "unit dim"]) -> Float[np.ndarray, "unit kept"]:
        """Rows cut to their chosen columns, scaled and weighed, as a new array; their norms change."""
        kept: Float[np.ndarray, "unit kept"] = rows[:, self.columns]
        if self.starts is not None:
            for block in np.split(kept, self.starts[1:], axis=1):  # views
                norms = np.sqrt(np.einsum("ij,ij->i", block, block, dtype=np.float64))
                block /= np.where(norms > 0, norms, 1)[:, None].astype(block.dtype)
        kept *= self.factors
        return kept


def choose_blocks(
    choice: BlockChoice, blocks: Sequence[Mapping[str, Any]], mean_squares: Float[np.ndarray, " block"] | None = None
) -> ChosenBlocks:
    """The columns of a row set's blocks (`name`, `first_column`, `last_column` inclusive) that a choice keeps.

    `mean_squares` is each block's mean share of a row's squared norm, for equal shares. Raises ConfigurationError for a
    pattern that fits no block, and where no block is left.
    """
    names = [str(block["name"]) for block in blocks]
    for pattern in (*choice.blocks, *(pattern for pattern, _ in choice.weights)):
        if pattern not in ("all", "paper") and not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigurationError(f"no block fits {pattern!r}; there are {', '.join(names)}")
    kept = [i for i, name in enumerate(names) if not choice.blocks or any(_fits(name, p) for p in choice.blocks)]
    if choice.scale == "equal" and mean_squares is not None:
        kept = [i for i in kept if mean_squares[i] > 0]
    if not kept:
        raise ConfigurationError(f"no block is left of {', '.join(names)}; choose others")
    weights = [_weight(names[i], choice.weights) for i in kept]
    if choice.scale == "equal":
        if mean_squares is None:
            raise ConfigurationError("equal shares need each block's mean share of the squared norm")
        weights = [w / float(mean_squares[i]) for w, i in zip(weights, kept, strict=True)]
    spans = [np.arange(int(blocks[i]["first_column"]), int(blocks[i]["last_column"]) + 1) for i in kept]
    factors = [np.full(len(span), np.sqrt(w)) for span, w in zip(spans, weights, strict=True)]
    return ChosenBlocks(
        columns=np.concatenate(spans).astype(np.int64),
        factors=np.concatenate(factors).astype(np.float32),
        names=tuple(names[i] for i in kept),
        starts=np.cumsum([0, *map(len, spans[:-1])]).astype(np.int64) if choice.scale == "unit" else None,
    )


def _fits(name: str, pattern: str) -> bool:
    if pattern == "paper":
        return not any(part in name.lower() for part in NOT_IN_PAPER)
    return pattern == "all" or fnmatchcase(name, pattern)


def _weight(name: str, weights: Sequence[tuple[str, float]]) -> float:
    return next((w for pattern, w in reversed(weights) if _fits(name, pattern)), 1.0)
