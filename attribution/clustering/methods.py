"""Clusterers by the names that people give on a command line. Knows which settings belong to which."""

from dataclasses import dataclass

from ...errors import ConfigurationError
from .average import AverageLinkage
from .base import Clusterer
from .density import Density
from .graph import Leiden
from .mixture import Refined
from .spectral import Spectral

METHODS = ("default", "average", "graph", "density", "spectral", "spectral-squared")
"""`default` is average linkage, refined; `average` that without refinement; `graph` is Leiden; `spectral` is the
paper's; `spectral-squared` the same with the squares of positive cosines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodConfig:
    """A clusterer and its settings; those that a method does not have must stay None."""

    method: str = "default"
    """One of METHODS."""
    num_quanta: int | None = None
    """How many quanta: `default`, `average`, and the spectral ones, which need it."""
    min_cosine: float | None = None
    """Where to cut: `default` and `average`."""
    resolution: float | None = None
    """Higher makes more quanta: `graph`."""
    min_size: int | None = None
    """Units that make a quantum: `density`."""
    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        """Refuse unknown methods, and settings that a method does not have."""
        if self.method not in METHODS:
            raise ConfigurationError(f"method is {self.method!r}; accepted are {', '.join(METHODS)}")
        theirs = {
            "default": ("num_quanta", "min_cosine"),
            "average": ("num_quanta", "min_cosine"),
            "graph": ("resolution",),
            "density": ("min_size",),
        }.get(self.method, ("num_quanta",))
        for name in ("num_quanta", "min_cosine", "resolution", "min_size"):
            if getattr(self, name) is not None and name not in theirs:
                raise ConfigurationError(
                    f"{name} does not belong to method {self.method}; it takes {', '.join(theirs)}"
                )
        if self.method.startswith("spectral") and self.num_quanta is None:
            raise ConfigurationError(f"method {self.method} cannot choose how many quanta there are: give num_quanta")

    def clusterer(self) -> Clusterer:
        """The clusterer; its own checks may refuse a setting."""
        if self.method == "graph":
            return Leiden(resolution=1.0 if self.resolution is None else self.resolution, seed=self.seed)
        if self.method == "density":
            return Density(min_size=5 if self.min_size is None else self.min_size, seed=self.seed)
        if self.method.startswith("spectral"):
            assert self.num_quanta is not None
            if self.method == "spectral":
                return Spectral(num_quanta=self.num_quanta, seed=self.seed)
            return Spectral(num_quanta=self.num_quanta, affinity="squared cosine", seed=self.seed)
        linkage = AverageLinkage(num_quanta=self.num_quanta, min_cosine=self.min_cosine, seed=self.seed)
        return linkage if self.method == "average" else Refined(inner=linkage, keep_all=self.num_quanta is not None)
