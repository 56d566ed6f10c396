"""What a ledger's books say: the balance sheet of the weights, and the account matrix of the losses.

Both roll up along the chart of accounts and along the modules, exactly. Knows numbers and names only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from .chart import roll_up


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceSheet:
    """Who moved the weights, by module. Vectors are over a module's parameters; w_T − w₀ is the change."""

    accounts: tuple[str, ...]
    """Kinds, then rounding and decay."""
    modules: tuple[str, ...]
    gram: Float64[np.ndarray, "module account account"]
    """Inner products of the entries: norms, and cosines between accounts, at any level of the chart."""
    along: Float64[np.ndarray, "module account"]
    """Inner product of each entry with the change."""
    change_square: Float64[np.ndarray, " module"]
    """Squared norm of the change."""
    residual_square: Float64[np.ndarray, " module"]
    """Squared norm of the change without the sum of all entries."""
    num_steps: int
    num_skipped: int
    """Steps that the optimiser did not make (overflow), booked as nothing."""

    @property
    def norms(self) -> Float64[np.ndarray, " account"]:
        """Norm of each account's entry."""
        return np.sqrt(np.maximum(np.einsum("maa->a", self.gram), 0))

    @property
    def shares(self) -> Float64[np.ndarray, " account"]:
        """Each entry's length along the change, over the change's own: they sum to 1 but for the residual."""
        return self.along.sum(0) / max(self.change_square.sum(), np.finfo(float).tiny)

    @property
    def cosines(self) -> Float64[np.ndarray, " account"]:
        """Cosine of each entry with the change; 0 for an empty entry."""
        scale = self.norms * np.sqrt(self.change_square.sum())
        return np.divide(self.along.sum(0), scale, out=np.zeros(len(scale)), where=scale > 0)

    @property
    def residual(self) -> float:
        """‖w_T − w₀ − Σ entries‖ / ‖w_T − w₀‖."""
        return float(np.sqrt(self.residual_square.sum() / max(self.change_square.sum(), np.finfo(float).tiny)))

    def roll_up(self, depth: int) -> "BalanceSheet":
        """The sheet with kinds added up that share the first `depth` parts of their paths."""
        accounts, matrix = roll_up(self.accounts, depth)
        return replace(
            self,
            accounts=accounts,
            gram=matrix @ self.gram @ matrix.T,
            along=self.along @ matrix.T,
        )

    def by_module(self, depth: int) -> "BalanceSheet":
        """The sheet with modules added up that share the first `depth` parts of their names."""
        modules, matrix = roll_up(self.modules, depth, ".")
        return replace(
            self,
            modules=modules,
            gram=np.einsum("gm,mab->gab", matrix, self.gram),
            along=matrix @ self.along,
            change_square=matrix @ self.change_square,
            residual_square=matrix @ self.residual_square,
        )

    def within(self, modules: Sequence[str]) -> "BalanceSheet":
        """The sheet of these modules alone; ValueError for one that it does not have."""
        places = [self.modules.index(name) for name in modules]
        return replace(
            self,
            modules=tuple(modules),
            gram=self.gram[places],
            along=self.along[places],
            change_square=self.change_square[places],
            residual_square=self.residual_square[places],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSheet:
    """Who lowered whose held-out loss, in nats: negative entries helped."""

    kinds: tuple[str, ...]
    """Whose loss: the labels of the evaluation."""
    counts: Int64[np.ndarray, " kind"]
    """Held-out examples of each."""
    accounts: tuple[str, ...]
    """Who changed it: the ledger's kinds, then rounding and decay."""
    modules: tuple[str, ...]
    changes: Float64[np.ndarray, "module kind account"]
    steps: Int64[np.ndarray, " reading"]
    """Steps made at each reading."""
    losses: Float64[np.ndarray, "reading kind"]
    booked: Float64[np.ndarray, "period kind account"]
    """The entries of each period, between one reading and the next."""

    @property
    def matrix(self) -> Float64[np.ndarray, "kind account"]:
        """A[c′, c]: the change of c′'s loss that training on c caused."""
        return self.changes.sum(0)

    @property
    def total(self) -> Float64[np.ndarray, " kind"]:
        """The losses' changes themselves, from the first reading to the last."""
        return self.losses[-1] - self.losses[0] if len(self.losses) else np.zeros(len(self.kinds))

    @property
    def residual(self) -> Float64[np.ndarray, " kind"]:
        """What the entries miss of it."""
        return self.total - self.matrix.sum(1)

    @property
    def path(self) -> Float64[np.ndarray, " kind"]:
        """Σ over periods of |change|: what residuals are measured against, since a loss may rise and fall."""
        return np.abs(np.diff(self.losses, axis=0)).sum(0)

    @property
    def missed(self) -> Float64[np.ndarray, " kind"]:
        """Σ over periods of |residual|, which cannot cancel."""
        return np.abs(np.diff(self.losses, axis=0) - self.booked.sum(2)).sum(0)

    def roll_up(self, depth: int) -> "LossSheet":
        """Accounts added up along the chart; losses of kinds averaged over their held-out examples."""
        accounts, columns = roll_up(self.accounts, depth)
        kinds, rows = roll_up(self.kinds, depth)
        counts = (rows @ self.counts).astype(np.int64)
        rows = rows * self.counts / counts[:, None]
        return replace(
            self,
            kinds=kinds,
            counts=counts,
            accounts=accounts,
            changes=rows @ self.changes @ columns.T,
            losses=self.losses @ rows.T,
            booked=rows @ self.booked @ columns.T,
        )

    def by_module(self, depth: int) -> "LossSheet":
        """Modules added up that share the first `depth` parts of their names."""
        modules, matrix = roll_up(self.modules, depth, ".")
        return replace(self, modules=modules, changes=np.einsum("gm,mka->gka", matrix, self.changes))

    def within(self, modules: Sequence[str]) -> "LossSheet":
        """The sheet whose matrix is that of these modules alone; the losses stay whole, so that it does not balance."""
        places = [self.modules.index(name) for name in modules]
        return replace(self, modules=tuple(modules), changes=self.changes[places])


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """The weights' entries over time: for each period and module, each account's length along that period's change."""

    steps: Int64[np.ndarray, " reading"]
    """Steps made at each closing; the first is where the books were opened."""
    along: Float64[np.ndarray, "period module account"]
    """Inner product of the period's entry with the period's change."""
    square: Float64[np.ndarray, "period module account"]
    """Squared norm of the period's entry."""
    change_square: Float64[np.ndarray, "period module"]
    """Squared norm of the sum of the period's entries."""


def sheet_facts(sheet: BalanceSheet) -> dict[str, Any]:
    """The weights' balance as JSON: one object per account."""
    return {
        "accounts": [
            {"account": account, "norm": float(norm), "share": float(share), "cosine": float(cosine)}
            for account, norm, share, cosine in zip(
                sheet.accounts, sheet.norms, sheet.shares, sheet.cosines, strict=True
            )
        ],
        "change_norm": float(np.sqrt(sheet.change_square.sum())),
        "residual": sheet.residual,
        "num_steps": sheet.num_steps,
        "num_skipped": sheet.num_skipped,
    }
