"""From a projection's description, as row sets keep it, back to the projection."""

from collections.abc import Callable, Mapping
from typing import Any

from ...errors import ConfigurationError
from .base import Projection
from .dense import Dense
from .identity import Identity
from .pair import Pair
from .sjlt import SparseJL
from .tensor_sketch import TensorSketch
from .two_sided import TwoSided
from .wide import Wide


def from_description(description: Mapping[str, Any]) -> Projection:
    """The projection whose `describe()` this is.

    Raises ConfigurationError for a kind that there is not, and where no projection of this version describes itself
    so (another stride, say, or an unknown field).
    """
    fields = dict(description)
    kind = fields.pop("kind", None)
    if kind not in _KINDS:
        raise ConfigurationError(f"A projection of kind {kind!r}; there are {', '.join(_KINDS)}.")
    try:
        made = _KINDS[kind](**{name: _value(value) for name, value in fields.items()})
        found = made.describe()
    except (TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"The description {dict(description)} does not fix a {kind} projection: {error}."
        ) from error
    if found != dict(description):
        raise ConfigurationError(
            f"The rows were made with {dict(description)}, this version would make {found}: use the version that "
            "made them, or collect again."
        )
    return made


def _value(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _pair(members: tuple[Mapping[str, Any], ...]) -> Pair:
    return Pair(members=tuple(from_description(member) for member in members))


_KINDS: dict[str, Callable[..., Projection]] = {
    "none": Identity,
    "tensor-sketch": TensorSketch,
    "two-sided": TwoSided,
    "sparse-jl": SparseJL,
    "dense": Dense,
    "wide": Wide,
    "pair": _pair,
}
