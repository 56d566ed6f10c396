"""What a collection would cost, before it begins. Writes nothing."""

import os

from ...errors import ConfigurationError
from ...storage.run import Run, open_store
from ..data.source import DataSource, check_data, read_documents
from ..data.tokens import tokenise
from ..models.model import LoadedModel, check_model, load_model
from ..workers.ray_session import RayOptions
from .collection import Collection
from .opening import earlier_plans, open_run, require_same_plan
from .plan import Estimate, estimate, make_plan, require_space

_SAMPLE_BYTES = 1_000_000


def dry_run(collection: Collection, ray_options: RayOptions) -> Estimate:
    """What the collection would cost, by reading the data's sizes and timing one batch; writes nothing.

    Raises NoSpaceError if the rows cannot fit, and whatever the collection itself would refuse beforehand.
    """
    check_model(collection.model)
    facts = check_data(collection.data)
    loaded = load_model(collection.model)
    if Run.exists(collection.out):
        plan = make_plan(collection.config, loaded, earlier_plans(collection))
        with open_run(collection, loaded) as run:
            require_same_plan(run.new_row_set(collection.set_name), plan)
    num_workers = ray_options.num_workers or max(1, (os.cpu_count() or 1) // ray_options.threads_per_worker)
    result = estimate(
        collection.config,
        loaded,
        num_tokens=_count_tokens(collection.data, loaded, facts.size_bytes),
        num_workers=num_workers,
    )
    require_space(result.num_bytes, open_store(collection.out).free_bytes(), collection.out)
    return result


def _count_tokens(source: DataSource, loaded: LoadedModel, size_bytes: int | None) -> int:
    """About how many tokens the data has: its size over the bytes per token of its first documents."""
    reader = read_documents(source, loaded.tokenizer)
    num_bytes = num_tokens = 0
    for document in reader:
        num_bytes += len(document.text.encode())
        num_tokens += len(tokenise(loaded.tokenizer, document).ids)
        if num_bytes > _SAMPLE_BYTES:
            break
    else:
        return num_tokens
    if size_bytes is None:
        raise ConfigurationError("The data's size is not known: give --max-documents to bound it.")
    return int(size_bytes / num_bytes * num_tokens)
