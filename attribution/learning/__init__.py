"""What is learned together: the test that groups of units must pass to be called quanta."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .co_emergence import CoEmergence as CoEmergence
    from .co_emergence import beyond_last as beyond_last
    from .co_emergence import co_emergence as co_emergence
    from .co_emergence import co_emergence_gain as co_emergence_gain
    from .co_emergence import mates_in_groups as mates_in_groups
    from .co_emergence import nearest_mates as nearest_mates
    from .opposition import group_by_opposition as group_by_opposition
    from .opposition import partial_correlations as partial_correlations
    from .transfer import Step as Step
    from .transfer import TransferTotals as TransferTotals
    from .transfer import measure_steps as measure_steps
    from .transfer import split_documents as split_documents

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "co_emergence": [
            "CoEmergence",
            "beyond_last",
            "co_emergence",
            "co_emergence_gain",
            "mates_in_groups",
            "nearest_mates",
        ],
        "opposition": ["group_by_opposition", "partial_correlations"],
        "transfer": ["Step", "TransferTotals", "measure_steps", "split_documents"],
    },
)
