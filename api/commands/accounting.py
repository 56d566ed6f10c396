"""The command that asks a ledger: who moved the weights, who lowered whose loss, what is left."""

from dataclasses import asdict
from typing import Annotated

import typer

from ...errors import RunNotFoundError
from .options import JsonOption, RunArgument, show


def ledger(
    run: RunArgument,
    name: Annotated[str | None, typer.Option(help="The ledger to ask; the default is main, or the only one.")] = None,
    depth: Annotated[
        int | None, typer.Option(help="Add up kinds that share so many parts of their paths (living/animal).")
    ] = None,
    module: Annotated[
        str | None, typer.Option(help="Only this part of the network: a module's name, or its beginning.")
    ] = None,
    documents: Annotated[int, typer.Option(help="Show so many documents behind the entries.")] = 0,
    kind: Annotated[str | None, typer.Option(help="Only documents of this kind.")] = None,
    html: Annotated[str | None, typer.Option(help="Write the ledger with its flows as one HTML file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a training's ledger: what each kind of data did to the weights and to each kind's loss."""
    from ...jobs.ledger.keeping import ROOM, document_entries, read_ledger
    from ...storage.run import Run
    from ..report.ledger import flow_page, write_page
    from ..text.ledger import document_lines, ledger_json, ledger_text, pair_lines, pairs_json

    opened = Run.open(run)
    names = opened.derived_names(ROOM)
    if not names:
        raise RunNotFoundError(f"{run} has no ledger yet: write_ledger keeps one (docs/ledger.md).")
    stored = read_ledger(opened, name or ("main" if "main" in names else names[0]))
    balance, losses = stored.balance, stored.losses
    if module:
        inside = [m for m in balance.modules if m == module or m.startswith(f"{module}.")]
        if not inside:
            raise RunNotFoundError(f"The ledger has no module {module!r}; it has {', '.join(balance.modules)}.")
        balance, losses = balance.within(inside), losses.within(inside) if losses else None
    if depth is not None:
        balance, losses = balance.roll_up(depth), losses.roll_up(depth) if losses else None
    behind = document_entries(stored, kind=kind)[:documents] if documents else []
    value = ledger_json(stored.name, balance, losses, stored.facts) | {"grade": stored.grade}
    text = ledger_text(stored.name, balance, losses, grade=stored.grade)
    if stored.interactions and not (module or depth):
        value["interactions"] = pairs_json(stored.interactions)
        text += "\n\n" + "\n".join(pair_lines(stored.interactions))
    if behind:
        value["documents"] = [asdict(entry) for entry in behind]
        text += "\n\n" + "\n".join(document_lines(behind))
    if html:
        write_page(html, flow_page(stored.name, balance, losses, None if module or depth else stored.course))
    show(value, text, as_json=as_json)
