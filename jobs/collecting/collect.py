"""A collection from end to end: check, ingest, select, collect; each committed in parts: the same command goes on.

The driver owns the plan and hands out tasks and blocks; Ray actors hold the model and commit what they make themselves,
so nothing large travels. A worker's death costs its block, the driver's costs nothing that was committed.
"""

from dataclasses import asdict

from ...storage.begun import clear_begun
from ...storage.run import open_store
from ..data.source import check_data
from ..models.model import check_model, load_model
from ..workers.progress import Listener, ignore
from ..workers.ray_session import RayOptions, require_token
from .collection import Collected as Collected
from .collection import Collection as Collection
from .estimating import dry_run as dry_run
from .ingest import ingest
from .opening import earlier_plans, open_run, require_same_plan
from .passes import collect_blocks, collected, freeze_units, scanner, workers
from .plan import make_plan
from .worker import make_selecting


def collect(collection: Collection, ray_options: RayOptions, *, listener: Listener = ignore) -> Collected:
    """Collect a row set, or what is missing of it.

    Everything that can be known is checked before Ray starts or a file is written. Raises WorkerFailedError, naming
    them, where blocks failed on every try; all others are committed then.
    """
    require_token(ray_options)
    open_store(collection.out).require_ready()
    check_model(collection.model)
    check_data(collection.data)
    loaded = load_model(collection.model)
    plan = make_plan(collection.config, loaded, earlier_plans(collection))
    with open_run(collection, loaded) as run:
        row_set = run.new_row_set(collection.set_name)
        require_same_plan(row_set, plan)
        ingest(
            run,
            collection.data,
            loaded.tokenizer,
            keep_text=collection.keep_text,
            vocab_size=loaded.model.config.vocab_size,
            listener=listener,
        )
        if row_set.planned:
            clear_begun(run.store, f"rows/{row_set.name}")  # of a process that was stopped just then
            if not row_set.missing_blocks():
                return collected(row_set)
        with workers(collection, run, ray_options, listener) as (pool, counting, num_workers):
            if not row_set.planned:
                selecting = make_selecting(run, row_set.name, collection.config, loaded)
                freeze_units(
                    row_set,
                    selecting,
                    run=run,
                    plan=plan,
                    config=collection.config,
                    loaded=loaded,
                    scan=scanner(pool, selecting, counting),
                )
            done = collect_blocks(row_set, pool, counting)
        run.log("collect", rows=row_set.name, num_workers=num_workers, **asdict(done))
        return done
