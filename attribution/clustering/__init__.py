"""From unit gradient rows to a tree of quanta."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .average import AverageLinkage as AverageLinkage
    from .base import Clusterer as Clusterer
    from .base import Clustering as Clustering
    from .base import cut_clustering as cut_clustering
    from .base import group_sums as group_sums
    from .base import order_by_size as order_by_size
    from .choose import CutChoice as CutChoice
    from .choose import choose_cut as choose_cut
    from .linkage import average_linkage as average_linkage
    from .tree import Tree as Tree

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "average": ["AverageLinkage"],
        "base": ["Clusterer", "Clustering", "cut_clustering", "group_sums", "order_by_size"],
        "choose": ["CutChoice", "choose_cut"],
        "linkage": ["average_linkage"],
        "tree": ["Tree"],
    },
)
