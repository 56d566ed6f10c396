"""The parts of a payload that say what the run is, and its first figures."""

from pydantic import Field

from .part import Part


class Figure(Part):
    """One figure of the first screen, as it is to be read, with the null that it has to beat."""

    name: str
    value: str
    """As shown, rounded, with its unit."""
    null: str = ""
    """Shown in small type beneath: the null's value, and a rival's where there is one."""
    definition: str
    caveat: str = ""
    command: str = ""
    """The command line that computes this figure again."""


class Header(Part):
    """The first thing that a reader meets."""

    title: str
    model: str
    num_parameters: int = Field(ge=0)
    step: int | None = None
    """The checkpoint that the rows were taken at."""
    sentence: str
    """The whole report in one sentence, made from the data."""
    figures: tuple[Figure, ...] = ()


class RunFacts(Part):
    """What it takes to judge the run, and to make it again."""

    num_rows: int = Field(ge=0)
    dimension: int = Field(ge=0)
    """D: numbers per row."""
    projection: str
    tokens_per_second: float | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    fingerprints: dict[str, str] = Field(default_factory=dict)
    commands: tuple[str, ...] = ()
    """The commands that make the run and this report, in order."""
    other: dict[str, str] = Field(default_factory=dict)
