"""One run's account beside all subsets: does a path's ledger say what training on every subset of kinds says?

The model and the bigram texts of benchmarks/ledger.py, four of the kinds, of which 0 and 1, and 2 and 3, share half of
their bigrams. One training on each of the 16 subsets, the same batches without the kinds that are left out. Shares are
Shapley's: each interaction of the subsets' held-out losses divided equally. Both matrices add up to the same change of
loss, kinds and decay together. `left out` is what the last kind to join does: all kinds against all but one.
"""

from typing import Any

import numpy as np
import torch
from ledger import KINDS, Bench, losses_of
from result import Bar, arguments, finish
from scipy.stats import spearmanr

from quantascope.attribution.ledger import Evaluation, Ledger
from quantascope.attribution.ledger.factorial import interactions, shapley_values, subsets

_KINDS = 4


class Factorial:
    def __init__(self, bench: Bench, steps: int) -> None:
        self.bench, self.steps = bench, steps
        self.names = KINDS[:_KINDS]
        self.held_out = self._own(bench.texts.draw(np.random.default_rng(bench.seed + 2), 24))

    def _own(self, drawn: tuple[torch.Tensor, list[str]]) -> tuple[torch.Tensor, list[str]]:
        ids, labels = drawn
        kept = [i for i, label in enumerate(labels) if label in self.names]
        return ids[kept], [labels[i] for i in kept]

    def train(self, chosen: tuple[int, ...], *, books: bool = False) -> tuple[np.ndarray, np.ndarray, Ledger | None]:
        """Held-out loss of each kind after the training, the weights, and the ledger."""
        bench = self.bench
        model = bench.model()
        optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
        evaluation = Evaluation(batches=[self.held_out], losses=losses_of, max_panels=8)
        ledger = Ledger(model, optimiser, self.names, evaluation=evaluation, period_steps=5) if books else None
        chance = np.random.default_rng(bench.seed + 1)
        wanted = {self.names[k] for k in chosen}
        for _ in range(self.steps if chosen else 0):
            ids, labels = self._own(bench.texts.draw(chance, 4))
            kept = [i for i, label in enumerate(labels) if label in wanted]
            if ledger is None:
                losses_of(model, ids[kept]).mean().backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimiser.step()
            else:
                with ledger.step([labels[i] for i in kept]) as step:
                    step.backward(losses_of(model, ids[kept]))
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                    optimiser.step()
            optimiser.zero_grad()
        if ledger is not None:
            ledger.close()
        with torch.no_grad():
            values = losses_of(model, self.held_out[0]).double().numpy()
        of_kind = [np.mean([v for v, o in zip(values, self.held_out[1], strict=True) if o == k]) for k in self.names]
        weights = torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()
        return np.array(of_kind), weights, ledger


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    bars: list[Bar] = []
    for steps in (20, 60) if options.quick else (20, 60, 200):
        bench = Bench(options)
        factorial = Factorial(bench, steps)
        trained = [factorial.train(subset) for subset in subsets(_KINDS)]
        values = np.stack([losses for losses, _, _ in trained])
        shares = shapley_values(values).T
        _, weights, ledger = factorial.train(tuple(range(_KINDS)), books=True)
        assert ledger is not None
        sheet = ledger.loss_sheet()
        assert sheet is not None
        order = [sheet.kinds.index(k) for k in factorial.names]
        account = sheet.matrix[order][:, [sheet.accounts.index(k) for k in factorial.names]]
        all_kinds = 2**_KINDS - 1
        left_out = np.stack([values[-1] - values[all_kinds - 2**k] for k in range(_KINDS)], axis=1)
        away = ~np.eye(_KINDS, dtype=bool)
        effects = np.abs(interactions(values)).mean(1)
        size = np.array([len(s) for s in subsets(_KINDS)])
        gap = float(np.abs(account.sum(1) - shares.sum(1)).max() / np.abs(shares.sum(1)).max())
        moves = interactions(np.stack([w for _, w, _ in trained]))
        norms = np.linalg.norm(moves, axis=1)
        rows.append(
            {
                "steps": steps,
                "rank r, shares": float(spearmanr(account.ravel(), shares.ravel())[0]),
                "off the diagonal": float(spearmanr(account[away], shares[away])[0]),
                "account, diagonal": float(account[~away].mean()),
                "off it": float(account[away].mean()),
                "shares, diagonal": float(shares[~away].mean()),
                "off it ": float(shares[away].mean()),
                "left out, off it": float(left_out[away].mean()),
                "r, left out": float(spearmanr(account[away], left_out[away])[0]),
                "loss: order 1": float(effects[size == 1].mean()),
                "order 2": float(effects[size == 2].mean()),
                "order 3+": float(effects[size >= 3].mean()),
                "weights 1": float(norms[size == 1].mean()),
                "weights 2": float(norms[size == 2].mean()),
            }
        )
        bars.append(
            Bar(name=f"{steps} steps: same total, apart by decay's part", value=gap, limit=0.1, holds=gap <= 0.1)
        )
        same = bool(np.array_equal(weights, trained[-1][1]))
        bars.append(Bar(name=f"{steps} steps: weights differ", value=float(not same), limit=0, holds=same))
    finish("factorial", list(rows[0]), rows, bars, options)


if __name__ == "__main__":
    main()
