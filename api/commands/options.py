"""What several commands share: their common arguments, and how results are printed."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import ConfigurationError

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run, or its URI (s3://…).")]
QuantaOption = Annotated[str, typer.Option("--quanta", help="Name of the clustering to ask.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def show(value: Any, text: str, *, as_json: bool) -> None:  # noqa: ANN401 - anything that JSON can say
    """Print a result for a person, or as one line of JSON."""
    typer.echo(json.dumps(value, ensure_ascii=False) if as_json else text)


def place(text: str) -> str:
    """A path or a pattern of paths, made absolute, so that a run knows it from anywhere; a hub id as it is."""
    from ...jobs.data.places import is_pattern

    path = Path(text).expanduser()
    if path.exists():
        return str(path.resolve())
    return str(path.absolute()) if is_pattern(text) and "://" not in text else text


def one_of(option: str, value: str, *accepted: str) -> Any:  # noqa: ANN401 - a literal that the caller names
    """The value, or ConfigurationError if it is none of the accepted ones."""
    if value not in accepted:
        raise ConfigurationError(f"{option} is {value!r}; accepted are {', '.join(accepted)}.")
    return value
