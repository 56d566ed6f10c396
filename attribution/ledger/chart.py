"""The chart of accounts: kinds of data as paths ("living/animal"), and how entries roll up along them.

Knows names; nothing of gradients.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ...errors import ConfigurationError

ROUNDING = "rounding"
"""The account of what is left between the gradient that was stepped and the sum over kinds: floating-point noise."""
DECAY = "decay"
"""The account of weight decay."""
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Chart:
    """The kinds of a ledger, in its order.

    Raises ConfigurationError for no kinds, equal ones, empty parts of a path, a kind within another kind, and names
    that the ledger keeps for itself.
    """

    kinds: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.kinds:
            raise ConfigurationError("A ledger needs at least one kind; give kinds=[…].")
        for kind in self.kinds:
            if not isinstance(kind, str) or not all(kind.split("/")):
                raise ConfigurationError(f"{kind!r} is no kind: use a name, or a path such as 'living/animal'.")
            if kind in (ROUNDING, DECAY):
                raise ConfigurationError(f"{kind!r} is an account that every ledger has; give the kind another name.")
        if len(set(self.kinds)) < len(self.kinds):
            twice = sorted({k for k in self.kinds if self.kinds.count(k) > 1})
            raise ConfigurationError(f"Kinds are given twice: {', '.join(twice)}.")
        for kind in self.kinds:
            inner = [k for k in self.kinds if k.startswith(f"{kind}/")]
            if inner:
                raise ConfigurationError(
                    f"{kind!r} cannot have entries of its own, since {inner[0]!r} lies within it; book what belongs to "
                    f"no part of it as '{kind}/other'."
                )

    @property
    def accounts(self) -> tuple[str, ...]:
        """The kinds, then rounding and decay."""
        return (*self.kinds, ROUNDING, DECAY)

    def indices(self, labels: Sequence[str | None]) -> Int64[Tensor, " example"]:
        """The number of each label's kind; ConfigurationError for a label that is missing or no kind of this ledger."""
        place = {kind: number for number, kind in enumerate(self.kinds)}
        for example, label in enumerate(labels):
            if label is None:
                raise ConfigurationError(f"Example {example} of the batch has no label; every example needs one.")
            if label not in place:
                raise ConfigurationError(
                    f"Example {example} of the batch has the label {label!r}, which this ledger has no account for; "
                    f"it has {_shown(self.kinds)}. All kinds are named when the ledger is opened."
                )
        return torch.tensor([place[str(label)] for label in labels], dtype=torch.int64)


def roll_up(
    names: Sequence[str], depth: int, separator: str = "/"
) -> tuple[tuple[str, ...], Float64[np.ndarray, "group name"]]:
    """The groups that names form by the first `depth` parts of their paths, and who belongs to which (ones and zeros).

    Groups stand in the order of their first member; multiplying by the matrix adds members up.
    """
    if depth < 1:
        raise ConfigurationError(f"depth is {depth}; a path has at least 1 part.")
    tops = [separator.join(name.split(separator)[:depth]) for name in names]
    groups = tuple(dict.fromkeys(tops))
    matrix = np.array([[float(top == group) for top in tops] for group in groups])
    return groups, matrix


def _shown(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
