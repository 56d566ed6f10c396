"""What a collection is asked for, and what it did."""

from dataclasses import dataclass

from ...errors import ConfigurationError
from ...storage.run import require_name
from ..data.source import DataSource
from ..models.model import ModelSource
from .config import SetConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """What to collect, and into which run."""

    out: str
    """The run's folder; made if it does not exist, gone on with if it does."""
    model: ModelSource
    data: DataSource
    config: SetConfig
    name: str | None = None
    """The row set's name; None takes the unit type."""
    keep_text: bool = True

    def __post_init__(self) -> None:
        require_name(self.set_name)
        label = self.config.selection.group_by
        if label is not None and label not in self.data.label_fields:
            raise ConfigurationError(
                f"--group-by is {label!r}; the labels kept are {', '.join(self.data.label_fields) or '(none)'}. "
                f"Add --label {label}."
            )

    @property
    def set_name(self) -> str:
        """The row set's name."""
        return self.name or self.config.selection.unit_type


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a collection did."""

    num_units: int
    dim: int
    zero: int
    refused: int
    cut: int
    """Documents and spans that were longer than what a unit reads."""
    rows_here: int
    """Rows that this process collected; the others were committed before."""
    tokens_here: int
    """Tokens that those rows read, each unit's context counted."""
    seconds: float
    """Of collecting them, start-up and selection left out."""
