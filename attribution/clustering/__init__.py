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
    from .density import Density as Density
    from .graph import Leiden as Leiden
    from .graph import neighbour_graph as neighbour_graph
    from .heights import by_centre_cosine as by_centre_cosine
    from .heights import centre_cosines as centre_cosines
    from .linkage import average_linkage as average_linkage
    from .local_graph import LocalNeighbours as LocalNeighbours
    from .local_graph import local_neighbours as local_neighbours
    from .methods import METHODS as METHODS
    from .methods import MethodConfig as MethodConfig
    from .mixture import Refined as Refined
    from .mixture import refine as refine
    from .nested import nested_clustering as nested_clustering
    from .persistence import branch_persistence as branch_persistence
    from .spectral import Spectral as Spectral
    from .tree import Tree as Tree

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "average": ["AverageLinkage"],
        "base": ["Clusterer", "Clustering", "cut_clustering", "group_sums", "order_by_size"],
        "choose": ["CutChoice", "choose_cut"],
        "density": ["Density"],
        "graph": ["Leiden", "neighbour_graph"],
        "heights": ["by_centre_cosine", "centre_cosines"],
        "linkage": ["average_linkage"],
        "local_graph": ["LocalNeighbours", "local_neighbours"],
        "methods": ["METHODS", "MethodConfig"],
        "mixture": ["Refined", "refine"],
        "nested": ["nested_clustering"],
        "persistence": ["branch_persistence"],
        "spectral": ["Spectral"],
        "tree": ["Tree"],
    },
)
