"""What all parts of a report's payload have in common."""

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """Frozen, and strict about names: a misspelt field is an error, not a silent gap in the page."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)
