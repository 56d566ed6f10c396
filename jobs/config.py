"""What a collection is asked to do: units, selection, projection, plan. Checked as soon as it is made."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..errors import ConfigurationError

UnitType = Literal["token-loss", "window"]
UNIT_TYPES = ("token-loss", "window")
PROJECTIONS = ("tensor-sketch", "two-sided", "none")
BLOCKS = ("paper", "linear")


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionConfig:
    """Which units get rows."""

    unit_type: UnitType = "token-loss"
    """token-loss: the gradient of one token's own loss; window: of a window's mean loss."""
    window_tokens: int | None = None
    """Documents are cut into windows of this many tokens; None takes the model's context, at most 1,024."""
    max_loss: float = 0.1
    """Token-loss units have a loss below this, in nats (exclusive); the paper's threshold."""
    max_units: int | None = None
    """Keep at most this many units, evenly spaced over the data; None keeps all."""
    max_per_window: int | None = None
    """Keep at most this many token-loss units of one window, evenly spaced."""
    scan_tokens: int | None = None
    """Look for token-loss units in about this many tokens, evenly spaced over the data; None looks at all."""

    def __post_init__(self) -> None:
        if self.unit_type not in UNIT_TYPES:
            raise ConfigurationError(f"--unit is {self.unit_type!r}; accepted are {', '.join(UNIT_TYPES)}.")
        for name in ("max_units", "max_per_window", "scan_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"--{name.replace('_', '-')} is {value}; give 1 or more.")
        if self.window_tokens is not None and self.window_tokens < 2:
            raise ConfigurationError(f"--window-tokens is {self.window_tokens}; a window needs at least 2 tokens.")
        if not self.max_loss > 0:
            raise ConfigurationError(f"--max-loss is {self.max_loss}; give a number of nats above 0.")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowConfig:
    """How a unit's gradient becomes a row, and in which pieces rows are computed."""

    projection: str = "tensor-sketch"
    dim: int = 4096
    """Numbers per row, shared equally by the blocks (rounded down); not used by projection none."""
    seed: int = 0
    """Seed of the projection."""
    blocks: Literal["paper", "linear"] = "paper"
    """paper: all linear maps but embeddings and output head; linear: the output head too."""
    require_coverage: bool = False
    """Refuse models with parameters that get no rows and are not left out by choice."""
    rows_per_block: int | None = None
    """Rows of one block: one Zarr chunk, one piece of work. None takes what fits in 16 MB and about 20 s."""
    batch_tokens: int | None = None
    """Padded tokens that go through the model together; None takes 512 on a CPU and 16,384 on a GPU."""
    threads_per_worker: int = 1
    """Part of the plan, since it decides the order in which numbers are added."""

    def __post_init__(self) -> None:
        if self.projection not in PROJECTIONS:
            raise ConfigurationError(f"--projection is {self.projection!r}; accepted are {', '.join(PROJECTIONS)}.")
        if self.blocks not in BLOCKS:
            raise ConfigurationError(f"--blocks is {self.blocks!r}; accepted are {', '.join(BLOCKS)}.")
        for name in ("dim", "rows_per_block", "batch_tokens", "threads_per_worker"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"--{name.replace('_', '-')} is {value}; give 1 or more.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SetConfig:
    """All that fixes a row set, besides the run's documents."""

    selection: SelectionConfig = field(default_factory=SelectionConfig)
    rows: RowConfig = field(default_factory=RowConfig)

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)
