"""Runs in a folder or an object store: manifest, documents, row sets, checked bytes. No models, no Ray, no FAISS."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .documents import StoredDocument as StoredDocument
    from .rowset import RowBlock as RowBlock
    from .rowset import RowSet as RowSet
    from .rowset import Status as Status
    from .run import Run as Run

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "documents": ["StoredDocument"],
        "rowset": ["RowBlock", "RowSet", "Status"],
        "run": ["Run"],
    },
)
