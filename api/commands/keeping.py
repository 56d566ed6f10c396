"""The commands that keep runs whole: verify, repair, copy."""

from dataclasses import asdict
from typing import Annotated

import typer

from ...errors import DamagedRunError
from .options import JsonOption, RunArgument, place, show
from .progress_bar import progress_listener


def verify(run: RunArgument, as_json: JsonOption = False) -> None:
    """Read everything in a run again, name what is damaged or missing, and say what mends it."""
    from ...jobs.verify import verify as verify_run
    from ..text.shown import verified_text

    with progress_listener() as listener:
        found = verify_run(run, listener=listener)
    show(asdict(found), verified_text(run, found), as_json=as_json)
    if not found.is_clean:
        raise DamagedRunError(f"{run} has {len(found.findings)} files that are not as they were written; see above.")


def repair(
    run: RunArgument,
    model: Annotated[str | None, typer.Option(help="The checkpoint, where the run's own path is gone.")] = None,
    dataset: Annotated[str | None, typer.Option(help="The data, where the run's own path is gone.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Ray workers; the default is as many as there is room for.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Collect again exactly what is damaged in a run, prove it by digest, and name what is to be computed again."""
    from ...jobs.repair import repair as repair_run
    from ...jobs.workers.ray_session import RayOptions
    from ..text.shown import repaired_text

    with progress_listener() as listener:
        done = repair_run(
            run,
            model=place(model) if model else None,
            dataset=place(dataset) if dataset else None,
            ray_options=RayOptions(num_workers=workers),
            listener=listener,
        )
    show(asdict(done), repaired_text(run, done), as_json=as_json)
    if done.left:
        raise DamagedRunError(f"{len(done.left)} files of {run} could not be mended; see above.")


def copy(
    run: RunArgument,
    to: Annotated[
        str, typer.Argument(metavar="TO", help="Folder or URI for the copy; gone on with if it holds half of one.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Copy a run, every file checked on the way and read back at the end."""
    from ...jobs.copying import copy as copy_run

    with progress_listener() as listener:
        done = copy_run(run, to, listener=listener)
    text = (
        f"{to} is a proved copy of {run}: {done.num_files:,} files, {done.num_bytes / 1e6:,.1f} MB, "
        f"{done.copied_here:,} copied now"
    )
    text += f"; left out: {', '.join(done.left_out)}" if done.left_out else ""
    show(asdict(done), text, as_json=as_json)
