"""A run from one place to another, with its progress."""

from ..storage.copying import Copied, copy_run
from ..storage.inventory import Inventory
from ..storage.run import Run, open_store
from .workers.progress import Listener, Stage, ignore


def copy(path: str, to: str, *, listener: Listener = ignore) -> Copied:
    """Copy a run to another folder, or go on with a copy that was stopped; see `storage.copying.copy_run`."""
    source = Run.open(path)
    num_files = sum(1 for _ in Inventory(source.store).expected())
    stages: dict[str, Stage] = {}

    def on_file(name: str) -> None:
        if name not in stages:
            stages[name] = Stage(listener, name, total=num_files, unit="files")
        stages[name].advance(1)

    return copy_run(source, open_store(to), on_file)
