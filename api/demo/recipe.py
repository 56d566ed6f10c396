"""The demonstration's training recipe: the model's shape, the optimisers' settings and the budget.

Knows which settings can work. Knows neither torch nor files.
"""

from dataclasses import dataclass
from typing import Literal

from quantascope.errors import ConfigurationError

LEAST_STEPS = 150
"""Steps that a budget in seconds makes at least: fewer teach nothing, and a busy machine would make a handful."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """The model, the recipe and the budget of one training run."""

    vocabulary_size: int = 4096
    """Tokens of the vocabulary: 256 bytes, one end of text, and merges."""
    width: int = 192
    """Numbers in a hidden state; a multiple of `num_heads`."""
    num_layers: int = 4
    num_heads: int = 4
    window_tokens: int = 256
    """Tokens that each training window predicts; also the model's context."""
    batch_windows: int = 4
    seconds: float = 170.0
    """Time for the training loop, its checkpoints included; longer where `LEAST_STEPS` take longer. The tokenizer and
    the last evaluation add some 8 s."""
    num_steps: int | None = None
    """A fixed number of steps instead of `seconds`: the same on the same machine, however busy it is."""
    matrix_learning_rate: float = 0.03
    """Muon's step, as a share of a matrix of orthonormal rows."""
    table_learning_rate: float = 0.01
    """AdamW's, for embeddings, output head, norms and biases."""
    weight_decay: float = 0.1
    """Decoupled, on the layers' matrices alone."""
    warmup_share: float = 0.03
    """The share of the budget over which the learning rate rises from zero."""
    num_checkpoints: int = 8
    """At geometrically spaced moments, the last at the end."""
    held_out_share: float = 0.05
    """The share of files that training never sees, at even distances in the order of their names."""
    precision: Literal["float32", "bfloat16", "auto"] = "auto"
    """Of the matrix products in training; `auto` takes bfloat16 where the processor multiplies it in tiles (AMX)."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be trained, with ConfigurationError."""
        if self.vocabulary_size <= 257:
            raise ConfigurationError(f"vocabulary_size is {self.vocabulary_size}; it needs more than 257.")
        if self.width % self.num_heads or (self.width // self.num_heads) % 8:
            raise ConfigurationError(
                f"width {self.width} over num_heads {self.num_heads} must give heads of a multiple of 8."
            )
        for name in ("num_layers", "num_heads", "window_tokens", "batch_windows", "seconds"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; it must be above zero.")
        if self.num_steps is not None and self.num_steps < 1:
            raise ConfigurationError(f"num_steps is {self.num_steps}; it must be at least 1, or None.")
        if self.num_checkpoints < 2:
            raise ConfigurationError(f"num_checkpoints is {self.num_checkpoints}; it must be at least 2.")
        if not 0 < self.held_out_share < 1:
            raise ConfigurationError(f"held_out_share is {self.held_out_share}; it lies between 0 and 1.")

    @classmethod
    def quick(cls) -> "TrainingConfig":
        """The preset of the one-minute demonstration: a smaller model for a corpus of about 1,500,000 bytes."""
        return cls(vocabulary_size=1024, width=128, num_layers=3, window_tokens=128, batch_windows=8, seconds=18.0)
