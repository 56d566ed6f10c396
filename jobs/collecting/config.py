"""What a collection is asked to do: units, selection, projection, plan. Checked as soon as it is made."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from ...errors import ConfigurationError

UnitType = Literal["token-loss", "window", "document", "span", "token-contribution", "group"]
UNIT_TYPES: tuple[UnitType, ...] = get_args(UnitType)
REDUCTIONS = ("mean", "sum")
PROJECTIONS = (
    "tensor-sketch",
    "two-sided",
    "two-sided-gaussian",
    "two-sided-orthonormal",
    "wide",
    "sparse-jl",
    "dense",
    "none",
)
LOSSES = ("cross-entropy", "margin")
MARGIN = "margin, logits"
"""What a plan calls the loss of token-loss units whose rows are gradients of margins."""
SHARES = ("energy", "size", "equal", "each")
PAIR = "pair:"
"""Before a projection's name: two of them, independent, in one pass, with half the numbers each."""
PRECONDITIONERS = ("none", "kfac", "second-moment")


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionConfig:
    """Which units get rows."""

    unit_type: UnitType = "token-loss"
    """What one gradient is of:
    token-loss: one token's own loss;
    window: a window's loss;
    document: a document's, cut at `window_tokens`;
    span: that of one completion of a document (a chat's answer);
    token-contribution: one position's share of its window's, with one unit more per window for the rest;
    group: that of all windows whose documents share the value of a label."""
    window_tokens: int | None = None
    """Documents are cut into windows of this many tokens; None takes the model's context, at most 1,024. For document
    and span: how many tokens a unit reads at most; None takes the model's context."""
    loss_reduction: Literal["mean", "sum"] = "mean"
    """Whether a unit's loss is the mean or the sum of its tokens'; no matter for token-loss."""
    group_by: str | None = None
    """The label whose values make the groups; for unit group alone."""
    max_loss: float = 0.1
    """Token-loss units have a loss below this, in nats (exclusive); the paper's threshold."""
    max_units: int | None = None
    """Keep at most this many units, evenly spaced over the data; None keeps all. Of token-contribution units, whole
    windows are kept."""
    max_per_window: int | None = None
    """Keep at most this many token-loss or token-contribution units of one window, evenly spaced."""
    scan_tokens: int | None = None
    """Look for token-loss, token-contribution and group units in about this many tokens, evenly spaced over the data;
    None looks at all."""

    def __post_init__(self) -> None:
        if self.unit_type not in UNIT_TYPES:
            raise ConfigurationError(f"--unit is {self.unit_type!r}; accepted are {', '.join(UNIT_TYPES)}.")
        if self.loss_reduction not in REDUCTIONS:
            raise ConfigurationError(
                f"--loss-reduction is {self.loss_reduction!r}; accepted are {', '.join(REDUCTIONS)}."
            )
        if (self.unit_type == "group") != (self.group_by is not None):
            raise ConfigurationError("--unit group and --group-by LABEL go together: give both or neither.")
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
    """Numbers per row at most, or per block with shares each; not used by projection none."""
    shares: Literal["energy", "size", "equal", "each"] = "energy"
    """How blocks share them: by their part of a gradient's squared norm (on text that the model writes itself), by
    their number of parameters, equally; or not at all: each block has so many."""
    loss: Literal["cross-entropy", "margin"] = "cross-entropy"
    """Of what a token-loss unit's row is the gradient: the token's loss, or its margin, the mean logit less its own,
    which says what a well-predicted token uses, whatever mistake is left (attribution/losses/margins.py). Units are
    chosen by their loss either way, and keep it."""
    seed: int = 0
    """Seed of the projection."""
    precondition: Literal["none", "kfac", "second-moment"] = "none"
    """Before the projection. kfac: gradients whitened by Kronecker factors of a sample of the units; second-moment:
    divided by the root of the second moment that the checkpoint's optimiser holds. With either, shares by energy are
    shares by size: they even out what a block's energy was."""
    blocks: str = "paper"
    """paper (all but embeddings, output head and norms), linear, all, kinds, patterns, last:N; joined by commas."""
    require_coverage: bool = False
    """Refuse models with parameters that get no rows and are not left out by choice."""
    rows_per_block: int | None = None
    """Rows of one block: one Zarr chunk, one piece of work. None takes what fits in 16 MB and about 20 s."""
    checkpoint_activations: bool = False
    """Layers keep their inputs alone and are run again in each backward pass: less memory, one forward pass more. The
    rows are the same, byte for byte, so that this is no part of the plan."""
    batch_tokens: int | None = None
    """Padded tokens that go through the model together; None finds a power of two that the device's memory holds and
    beyond which it is hardly quicker (batch_size.py)."""
    threads_per_worker: int = 1
    """Part of the plan, since it decides the order in which numbers are added."""

    def __post_init__(self) -> None:
        kind = self.projection.removeprefix(PAIR)
        if kind not in PROJECTIONS or (kind == "none" and kind != self.projection):
            raise ConfigurationError(
                f"--projection is {self.projection!r}; accepted are {', '.join(PROJECTIONS)}, and each but none after "
                f"{PAIR} for two independent ones."
            )
        if self.loss not in LOSSES:
            raise ConfigurationError(f"--loss is {self.loss!r}; accepted are {', '.join(LOSSES)}.")
        if self.shares not in SHARES:
            raise ConfigurationError(f"--shares is {self.shares!r}; accepted are {', '.join(SHARES)}.")
        if self.precondition not in PRECONDITIONERS:
            raise ConfigurationError(
                f"--precondition is {self.precondition!r}; accepted are {', '.join(PRECONDITIONERS)}."
            )
        for name in ("dim", "rows_per_block", "batch_tokens", "threads_per_worker"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"--{name.replace('_', '-')} is {value}; give 1 or more.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SetConfig:
    """All that fixes a row set, besides the run's documents."""

    selection: SelectionConfig = field(default_factory=SelectionConfig)
    rows: RowConfig = field(default_factory=RowConfig)

    def __post_init__(self) -> None:
        if self.rows.precondition == "kfac" and self.selection.unit_type == "token-contribution":
            raise ConfigurationError("--precondition kfac is for units with a loss of their own, not contributions.")
        if self.rows.loss == "margin" and self.selection.unit_type != "token-loss":
            raise ConfigurationError(
                f"--loss margin is for token-loss units; {self.selection.unit_type} units have rows of cross-entropy."
            )

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)
