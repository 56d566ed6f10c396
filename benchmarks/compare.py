"""Which skills did a fine-tune change? Two fine-tunes of one model on differently styled text, and two seeds of one.

A language of phrases: each has words of its own and is followed by its own continuation, with stray words between them.
The base model learns all phrases in their plain form. A style gives some of the phrases another continuation; two
fine-tunes learn two styles, each beside plain text. Units are the predictable words of held-out texts (plain, and in
both styles); quanta are made of the first fine-tune's gradient rows. A unit is styled if its word belongs to a
continuation that a style has changed. The score of a unit is how far its quantum's change lies from what seeds do.

`two seeds`: the same fine-tune twice, and what seeds do taken from two more seeds, so that nothing is tested against
itself. Lesions: each layer and head of the base model left out.
"""

import argparse
import copy
from typing import Any

import numpy as np
import torch
from result import Bar, arguments, finish
from sklearn.metrics import roc_auc_score
from torch.nn.functional import cross_entropy
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from quantascope.attribution.blocks import find_blocks
from quantascope.attribution.change.compare import Changes, changes_against_documents, changes_against_seeds
from quantascope.attribution.change.lesions import lesioned
from quantascope.attribution.clustering import AverageLinkage, Refined
from quantascope.attribution.engine import GradientEngine
from quantascope.attribution.losses import TokenBatch, token_losses
from quantascope.attribution.projection import TensorSketch
from quantascope.attribution.whitening import Whitener, WhiteningConfig

_STRAY = 0.15
PLAIN, FIRST, SECOND = 0, 1, 2


class Phrases:
    """Phrases of two words and a continuation of two; styles replace the continuations of some."""

    def __init__(self, num_phrases: int, num_words: int, seed: int) -> None:
        chance = np.random.default_rng(seed)
        self.num_words = num_words
        self.heads = chance.integers(1, num_words, (num_phrases, 2))
        self.tails = np.stack([chance.integers(1, num_words, (num_phrases, 2)) for _ in range(3)])
        """[style, phrase, word]: plain, and what the styles have in its place."""
        each = num_phrases // 4
        order = chance.permutation(num_phrases)
        self.styled = np.zeros((3, num_phrases), np.bool_)
        self.styled[FIRST, order[:each]] = self.styled[SECOND, order[each : 2 * each]] = True

    def text(self, style: int, length: int, chance: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Words, which of them can be predicted, and which are styled."""
        words: list[int] = [0]
        marks: list[tuple[bool, bool]] = [(False, False)]
        while len(words) < length:
            if chance.random() < _STRAY:
                words.append(int(chance.integers(1, self.num_words)))
                marks.append((False, False))
                continue
            phrase = int(chance.integers(len(self.heads)))
            is_styled = bool(self.styled[style, phrase])
            tail = self.tails[style if is_styled else PLAIN, phrase]
            words += [*self.heads[phrase].tolist(), *tail.tolist()]
            marks += [(False, False), (True, False), (True, is_styled), (True, is_styled)]
        kept = np.array(marks[:length])
        return np.array(words[:length]), kept[:, 0], kept[:, 1]

    def texts(self, style: int, count: int, length: int, chance: np.random.Generator) -> torch.Tensor:
        return torch.from_numpy(np.stack([self.text(style, length, chance)[0] for _ in range(count)]))


class Bench:
    def __init__(self, options: argparse.Namespace) -> None:
        self.quick, self.seed = options.quick, options.seed
        self.length, self.batch = 48, 32
        self.phrases = Phrases(32 if self.quick else 64, 96 if self.quick else 192, self.seed)
        self.base_steps, self.tune_steps = (700, 120) if self.quick else (2_500, 250)

    def run(self) -> tuple[list[dict[str, Any]], list[Bar]]:
        """Train everything, then compare."""
        base = self.train(self.model(), [PLAIN], self.base_steps, seed=self.seed, rate=3e-3)
        tuned = {
            name: self.train(
                copy.deepcopy(base), [PLAIN, style], self.tune_steps, seed=100 + 10 * self.seed + n, rate=1e-3
            )
            for n, (name, style) in enumerate(
                [("first", FIRST), ("twin", FIRST), ("seed a", FIRST), ("seed b", FIRST), ("second", SECOND)]
            )
        }
        self.units(60 if self.quick else 150)
        losses = {name: self.losses(model) for name, model in {"base": base, **tuned}.items()}
        quantum = self.quanta(tuned["first"])
        null = [losses["seed a"] - losses["seed b"]]
        found = {
            "two styles": changes_against_seeds(losses["second"] - losses["first"], null, quantum),
            "two seeds": changes_against_seeds(losses["twin"] - losses["first"], null, quantum),
            "base and fine-tune": changes_against_seeds(losses["first"] - losses["base"], null, quantum),
            "two styles, documents": self.by_documents(losses["second"] - losses["first"], quantum),
            "two seeds, documents": self.by_documents(losses["twin"] - losses["first"], quantum),
        }
        rows = [self.row(name, changes, quantum) for name, changes in found.items()]
        rows[2]["AUROC"] = self.auroc(found["base and fine-tune"], quantum, self.style_of == FIRST)
        bars = [
            _at_least("changed quanta hold the styled text, AUROC", rows[0]["AUROC"], 0.9),
            _at_most("quanta that changed between two seeds", rows[1]["changed"], 0),
        ]
        return rows + self.lesions(base, losses["base"], quantum), bars

    def model(self) -> GPTNeoXForCausalLM:
        torch.manual_seed(self.seed)
        config = GPTNeoXConfig(
            vocab_size=self.phrases.num_words,
            hidden_size=48 if self.quick else 96,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=192 if self.quick else 384,
            max_position_embeddings=self.length,
            bos_token_id=0,
            eos_token_id=0,
        )
        return GPTNeoXForCausalLM(config)

    def train(
        self, model: GPTNeoXForCausalLM, styles: list[int], steps: int, *, seed: int, rate: float
    ) -> GPTNeoXForCausalLM:
        """On texts in these styles, in equal parts; the seed decides the texts."""
        chance = np.random.default_rng(seed)
        optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: min(1.0, (s + 1) / 20) * (1 - s / steps))
        model.train().requires_grad_(True)
        for _ in range(steps):
            ids = torch.cat([self.phrases.texts(s, self.batch // len(styles), self.length, chance) for s in styles])
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
            torch.autograd.backward(cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
        return model.eval().requires_grad_(False)

    def units(self, per_style: int) -> None:
        """Predictable words of held-out texts, of every style."""
        chance = np.random.default_rng(7 + self.seed)
        texts, documents, positions, styled, styles = [], [], [], [], []
        for style in (PLAIN, FIRST, SECOND):
            for _ in range(per_style):
                words, predictable, is_styled = self.phrases.text(style, self.length, chance)
                place = np.flatnonzero(predictable)
                documents += [len(texts)] * len(place)
                positions += place.tolist()
                styled += is_styled[place].tolist()
                styles += [style] * len(place)
                texts.append(words)
        self.ids = torch.from_numpy(np.stack(texts))
        self.document, self.position = np.array(documents), np.array(positions)
        self.styled, self.style_of = np.array(styled), np.where(styled, styles, PLAIN)

    def batches(self, num_texts: int) -> list[tuple[np.ndarray, TokenBatch]]:
        found = []
        for first in range(0, len(self.ids), num_texts):
            own = np.flatnonzero((self.document >= first) & (self.document < first + num_texts))
            example = torch.from_numpy(self.document[own] - first)
            batch = TokenBatch(
                ids=self.ids[first : first + num_texts], example=example, position=torch.from_numpy(self.position[own])
            )
            found.append((own, batch))
        return found

    @torch.no_grad()
    def losses(self, model: GPTNeoXForCausalLM) -> np.ndarray:
        result = np.empty(len(self.document))
        for own, batch in self.batches(64):
            result[own] = token_losses(model, batch).double().numpy()
        return result

    def quanta(self, model: GPTNeoXForCausalLM) -> np.ndarray:
        """Whitened rows of every unit's own loss, clustered."""
        blocks = find_blocks(model, "linear").blocks
        engine = GradientEngine[TokenBatch](model, TensorSketch(dim_per_block=64), blocks)
        rows = np.empty((len(self.document), engine.dim), np.float32)
        for own, batch in self.batches(8):
            rows[own] = engine.rows(batch, token_losses, batch.example, num_examples=len(batch.ids)).rows.numpy()
        rows = Whitener.fit(rows, WhiteningConfig()).apply(rows / np.linalg.norm(rows, axis=1, keepdims=True))
        return Refined(inner=AverageLinkage()).cluster(rows, self.document).assignments.astype(np.int64)

    def by_documents(self, change: np.ndarray, quantum: np.ndarray) -> Changes:
        return changes_against_documents(change, quantum, self.document, seed=self.seed)

    def auroc(self, changes: Changes, quantum: np.ndarray, truth: np.ndarray) -> float:
        return float(roc_auc_score(truth, np.abs(changes.score)[quantum]))

    def row(self, name: str, changes: Changes, quantum: np.ndarray) -> dict[str, Any]:
        changed = changes.changed()
        is_mostly = np.bincount(quantum, weights=self.styled) / np.bincount(quantum) > 0.5
        return {
            "what": name,
            "quanta": len(changed),
            "changed": int(changed.sum()),
            "of styled ones": f"{int(changed[is_mostly].sum())} of {int(is_mostly.sum())}",
            "AUROC": self.auroc(changes, quantum, self.styled),
        }

    def lesions(self, model: GPTNeoXForCausalLM, base: np.ndarray, quantum: np.ndarray) -> list[dict[str, Any]]:
        """How many quanta each part carries, and how unevenly: the share of the rise that a tenth of them have."""
        rows = []
        parts = [f"layers.{i}" for i in range(2)] + [f"layers.{i}.heads.{h}" for i in range(2) for h in range(4)]
        plain = self.style_of == PLAIN
        for part in parts:
            with lesioned(model, part):
                found = self.losses(model) - base
            numbers, dense = np.unique(quantum[plain], return_inverse=True)
            changes = changes_against_documents(found[plain], dense, self.document[plain], seed=self.seed)
            rise = np.sort(np.maximum(changes.change, 0) * np.bincount(dense))[::-1]
            top = rise[: max(1, len(rise) // 10)].sum() / max(rise.sum(), 1e-12)
            rows.append(
                {
                    "what": f"without {part}",
                    "quanta": len(numbers),
                    "changed": int((changes.changed() & (changes.change > 0)).sum()),
                    "mean change": float(found[plain].mean()),
                    "share of a tenth": float(top),
                }
            )
        return rows


def _at_least(name: str, value: float, limit: float) -> Bar:
    return Bar(name=name, value=value, limit=limit, holds=value >= limit)


def _at_most(name: str, value: float, limit: float) -> Bar:
    return Bar(name=name, value=value, limit=limit, holds=value <= limit)


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    torch.set_num_threads(options.threads)
    rows, bars = Bench(options).run()
    columns = ("what", "quanta", "changed", "of styled ones", "AUROC", "mean change", "share of a tenth")
    finish("compare", columns, rows, bars, options)


if __name__ == "__main__":
    main()
