"""The ledger: what each kind of data did to the weights and to the loss, booked step by step, with books that balance.

An account of the training as it happened, not a counterfactual: see docs/ledger.md.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .chart import Chart as Chart
    from .evaluation import Evaluation as Evaluation
    from .examples import ExampleRecord as ExampleRecord
    from .examples import entries_by as entries_by
    from .examples import example_effects as example_effects
    from .examples import example_entries as example_entries
    from .examples import rank_one_entries as rank_one_entries
    from .interactions import InteractionSheet as InteractionSheet
    from .ledger import Ledger as Ledger
    from .ledger import Step as Step
    from .sheets import BalanceSheet as BalanceSheet
    from .sheets import LossSheet as LossSheet
    from .sketched import SketchedLedger as SketchedLedger

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "chart": ["Chart"],
        "evaluation": ["Evaluation"],
        "examples": ["ExampleRecord", "entries_by", "example_effects", "example_entries", "rank_one_entries"],
        "interactions": ["InteractionSheet"],
        "ledger": ["Ledger", "Step"],
        "sheets": ["BalanceSheet", "LossSheet"],
        "sketched": ["SketchedLedger"],
    },
)
