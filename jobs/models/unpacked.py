"""Batches whose rows hold one text each, and a GPU that need not be asked about it.

In every forward pass transformers' models look whether positions are those of several texts packed into one row.
Reading the answer makes a GPU wait for all work that was queued before; here it is known.
"""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_text_per_row() -> Iterator[None]:
    """Within, transformers takes it for granted, in this whole process."""
    from transformers import masking_utils

    name = "find_packed_sequence_indices"
    before = getattr(masking_utils, name, None)
    if before is None:  # of a version that does not ask
        yield
        return
    setattr(masking_utils, name, lambda _position_ids: None)
    try:
        yield
    finally:
        setattr(masking_utils, name, before)
