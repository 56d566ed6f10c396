"""What fourteen kinds of text did to a small language model: the ledger's account beside retraining without each kind.

Trains a small GPT-NeoX on short abstracts in 14 kinds (a CSV file with the columns kind and text), with a ledger that
books who moved the weights and who lowered whose held-out loss. Then trains again without each kind in turn, from the
same start and on the same batches otherwise, and compares: an account of one run is no counterfactual, and this is how
far apart the two are.

    python examples/plants_and_animals.py                        # 100 steps, three seeds
    python examples/plants_and_animals.py --steps 300 --seeds 1
    python examples/plants_and_animals.py --run runs/kinds       # and keep the ledger: quantascope ledger runs/kinds
    python examples/plants_and_animals.py --quanta --html flows.html

Each kind is booked in two halves that chance made, whose difference says which entries are more than chance; --html
draws those. --quanta clusters the rows of the training's texts and replays the first training with the quanta as
accounts. What a seed's trainings gave is kept in --cache, and not done again. About 15 s of one core for each of a
seed's 15 trainings, and two minutes for each ledger.
"""

import argparse
import csv
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from quantascope.api.report.ledger import flows_page, write_page
from quantascope.attribution.blocks import find_blocks
from quantascope.attribution.clustering import Refined
from quantascope.attribution.engine import GradientEngine
from quantascope.attribution.ledger import Evaluation, Ledger
from quantascope.attribution.ledger.chance import Flows, centre, flows_beyond_chance
from quantascope.attribution.projection import TwoSided
from quantascope.jobs.ledger.keeping import write_ledger

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "dbpedia.csv"
WINDOW = 64
PER_KIND = 4
READ = 32
"""Held-out texts of each kind that one ledger reads; each seed's reads others."""
DRAWN = 30
"""Flows in the picture."""
LEAST_SHARE = 0.01
"""Quanta with fewer of the texts are booked together."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Token windows by kind, padded with −1."""

    kinds: list[str]
    training: dict[str, torch.Tensor]
    held_out: dict[str, torch.Tensor]
    vocab_size: int


def read_texts(path: Path, num_held_out: int, vocab_size: int) -> Texts:
    """Windows of the beginnings of all texts; the last of each kind are held out."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((row["text"] for row in rows), trainer)
    windows: dict[str, list[list[int]]] = {}
    for row in rows:
        ids = tokenizer.encode(row["text"]).ids[:WINDOW]
        windows.setdefault(row["kind"], []).append(ids + [-1] * (WINDOW - len(ids)))
    tensors = {kind: torch.tensor(own) for kind, own in sorted(windows.items())}
    return Texts(
        kinds=list(tensors),
        training={kind: own[:-num_held_out] for kind, own in tensors.items()},
        held_out={kind: own[-num_held_out:] for kind, own in tensors.items()},
        vocab_size=tokenizer.get_vocab_size(),
    )


def losses(model: GPTNeoXForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross-entropy of each window, in nats."""
    logits = model(input_ids=ids.clamp(min=0), use_cache=False).logits[:, :-1]
    targets = ids[:, 1:]
    values = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none")
    return values.reshape(targets.shape).sum(1) / (targets >= 0).sum(1)


def rate(step: int, steps: int, *, is_constant: bool) -> float:
    """Warm-up over a tenth of the steps, and linear decay to nothing, so that two trainings end alike; or no decay."""
    return min(1.0, (step + 1) / (steps // 10 or 1)) * (1 if is_constant else 1 - step / steps)


def make_model(texts: Texts, seed: int) -> GPTNeoXForCausalLM:
    torch.manual_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=texts.vocab_size,
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=384,
        max_position_embeddings=WINDOW,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPTNeoXForCausalLM(config)


Label = Callable[[str, int], str]
"""The account of a training text, by its kind and its number within it."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """The texts, the recipe, and where results are kept."""

    texts: Texts
    steps: int
    held_out: int
    is_constant: bool
    """The learning rate does not decay."""
    cache: Path

    def train(self, seed: int, *, without: str | None = None) -> np.ndarray:
        """Each held-out text's loss after a training, [kind, text]."""
        place = self.cache / f"{self._recipe}_{seed}_{without}.npy"
        if not place.is_file():
            np.save(place, self._train(seed, without=without)[0])
            print(f"  seed {seed}: trained without {without}", flush=True)
        return np.load(place)

    def ledger(self, seed: int, accounts: list[str], label: Label) -> tuple[Ledger, GPTNeoXForCausalLM]:
        """The books of a training, and the model that it made."""
        _, model, ledger = self._train(seed, accounts=accounts, label=label)
        assert ledger is not None
        return ledger, model

    def account(self, seed: int, run: str | None) -> dict[str, Any]:
        """The account matrix of a training with every kind in two halves, [half, kind, kind], with its residuals."""
        place = self.cache / f"{self._recipe}_{seed}_account_{READ}.json"
        if not place.is_file():
            kinds, chance = self.texts.kinds, random.Random(f"halves {seed}")
            halves = {kind: [chance.randrange(2) for _ in own] for kind, own in self.texts.training.items()}
            accounts = [f"{kind}/{half}" for kind in kinds for half in range(2)]
            start = time.perf_counter()
            ledger, _ = self.ledger(seed, accounts, lambda kind, number: f"{kind}/{halves[kind][number]}")
            sheet, balance = ledger.loss_sheet(), ledger.balance()
            assert sheet is not None
            rows = [sheet.kinds.index(kind) for kind in kinds]
            columns = [[sheet.accounts.index(f"{kind}/{half}") for kind in kinds] for half in range(2)]
            found = {
                "matrix": [sheet.matrix[rows][:, own].tolist() for own in columns],
                "weight residual": balance.residual,
                "loss residual over path, worst kind": float((sheet.missed / sheet.path).max()),
                "seconds": time.perf_counter() - start,
            }
            place.write_text(json.dumps(found), encoding="utf-8")
            if run:
                write_ledger(run, ledger, facts={"steps": self.steps, "seed": seed})
        return dict(json.loads(place.read_text(encoding="utf-8")))

    def retrained(self, seed: int) -> np.ndarray:
        """[kind whose loss, kind left out]: what the presence of each kind changed, by training without it."""
        whole = self.train(seed).mean(1)
        return np.stack([whole - self.train(seed, without=kind).mean(1) for kind in self.texts.kinds], axis=1)

    @property
    def _recipe(self) -> str:
        kind = "constant" if self.is_constant else "decayed"
        return f"{kind}_{self.steps}_{self.texts.vocab_size}_{self.held_out}"

    def _train(
        self, seed: int, *, without: str | None = None, accounts: list[str] | None = None, label: Label | None = None
    ) -> tuple[np.ndarray, GPTNeoXForCausalLM, Ledger | None]:
        texts, steps = self.texts, self.steps
        model = make_model(texts, seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1, betas=(0.9, 0.95))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate(step, steps, is_constant=self.is_constant)
        )
        first = seed * READ % max(self.held_out - READ + 1, 1)
        held_out = [
            (own[first : first + READ], [kind] * len(own[first : first + READ])) for kind, own in texts.held_out.items()
        ]
        evaluation = Evaluation(batches=held_out, losses=losses, max_panels=16)
        ledger = Ledger(model, optimizer, accounts, evaluation=evaluation, period_steps=10) if accounts else None
        chance = random.Random(seed)
        for _ in range(steps):
            chosen = {
                kind: [chance.randrange(len(own)) for _ in range(PER_KIND)] for kind, own in texts.training.items()
            }
            kinds = [kind for kind in texts.kinds if kind != without]
            ids = torch.cat([texts.training[kind][chosen[kind]] for kind in kinds])
            if ledger is None or label is None:
                losses(model, ids).mean().backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            else:
                with ledger.step([label(kind, number) for kind in kinds for number in chosen[kind]]) as step:
                    step.backward(losses(model, ids))
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if ledger is not None:
            ledger.close()
        model.eval()
        with torch.no_grad():
            found = torch.stack([losses(model, own) for own in texts.held_out.values()])
        return found.numpy(), model, ledger


def spearman(first: np.ndarray, second: np.ndarray, *, centred: bool = False) -> float:
    """Rank correlation of two matrices off their diagonals; `centred` takes out the rows' and the columns' means."""
    away = ~np.eye(len(first), dtype=bool)
    values = []
    for matrix in (first, second):
        if centred:
            matrix = centre(matrix)
        values.append(np.argsort(np.argsort(matrix[away])).astype(float))
    return float(np.corrcoef(values)[0, 1])


def pairs_mean(matrices: list[np.ndarray], *, centred: bool = False) -> float:
    """Mean rank correlation of all pairs of matrices."""
    pairs = [(a, b) for i, a in enumerate(matrices) for b in matrices[:i]]
    return float(np.mean([spearman(a, b, centred=centred) for a, b in pairs]))


def disattenuated(value: float, reliability: list[tuple[float, int]]) -> float:
    """A correlation divided by the root of both sides' reliabilities (Spearman 1904).

    Each reliability is the mean correlation of two single measurements, and how many were averaged (Spearman 1910,
    Brown 1910). NaN where two measurements do not agree at all.
    """
    for one, number in reliability:
        if one <= 0:
            return float("nan")
        value /= (number * one / (1 + (number - 1) * one)) ** 0.5
    return value


def compared(accounts: list[np.ndarray], retraining: list[np.ndarray], kinds: list[str]) -> dict[str, Any]:
    """The mean account beside the mean of retraining."""
    account, mean = np.mean(accounts, axis=0), np.mean(retraining, axis=0)
    figures: dict[str, Any] = {"seeds": len(retraining)}
    for centred in (False, True):
        words = ", centred" if centred else ""
        value = spearman(account, mean, centred=centred)
        figures[f"Spearman, account and retraining{words}"] = value
        figures[f"one account and retraining{words}"] = [spearman(own, mean, centred=centred) for own in accounts]
        if len(retraining) > 1:
            figures[f"two retraining seeds{words}"] = pairs_mean(retraining, centred=centred)
            figures[f"two accounts{words}"] = pairs_mean(accounts, centred=centred)
            reliability = [
                (figures[f"two retraining seeds{words}"], len(retraining)),
                (figures[f"two accounts{words}"], len(accounts)),
            ]
            figures[f"without the seeds' noise{words}"] = disattenuated(value, reliability)
    figures["greatest helpers, account"] = helpers(account, kinds)
    figures["greatest helpers, retraining"] = helpers(mean, kinds)
    return figures


def flow_lines(flows: Flows, kinds: list[str]) -> list[tuple[str, str, float]]:
    """By whom, whose loss, and by how much: the entries beyond chance."""
    return [(kinds[column], kinds[row], float(flows.centred[row, column])) for row, column in flows.found()]


def quanta_of(study: Study, model: GPTNeoXForCausalLM) -> dict[str, list[str]]:
    """The quantum of each training text, by its gradient row in the trained model; small ones are one account."""
    engine = GradientEngine(model, TwoSided(dim_per_block=64, seed=0), find_blocks(model).blocks)
    parts = []
    for own in study.texts.training.values():
        parts += [engine.rows(ids, losses).rows.numpy() for ids in own.split(PER_KIND * len(study.texts.kinds))]
    rows = np.concatenate(parts)
    quantum = Refined().cluster(rows / np.linalg.norm(rows, axis=1, keepdims=True)).assignments
    names = [k for kind, own in study.texts.training.items() for k in [kind] * len(own)]
    large = {q for q, n in Counter(quantum.tolist()).items() if n >= LEAST_SHARE * len(quantum)}
    titles = {q: f"quantum {q}" for q in large}
    labels = [titles.get(q, "small quanta") for q in quantum.tolist()]
    found: dict[str, list[str]] = {kind: [] for kind in study.texts.kinds}
    for kind, text_label in zip(names, labels, strict=True):
        found[kind].append(text_label)
    return found


def by_quanta(study: Study, halves: np.ndarray) -> dict[str, Any]:
    """The first training again with the quanta of its texts as accounts: the same path, other columns."""
    _, model, _ = study._train(0)
    quantum = quanta_of(study, model)
    accounts = sorted({label for own in quantum.values() for label in own})
    ledger, _ = study.ledger(0, accounts, lambda kind, number: quantum[kind][number])
    sheet = ledger.loss_sheet()
    assert sheet is not None
    kinds = study.texts.kinds
    matrix = sheet.matrix[[sheet.kinds.index(kind) for kind in kinds]][:, : len(accounts)]
    of_kinds = halves.sum(0).sum(1)
    share = {
        a: {
            k: n for k, own in quantum.items() if (n := own.count(a)) >= 0.1 * sum(o.count(a) for o in quantum.values())
        }
        for a in accounts
    }
    return {
        "accounts": accounts,
        "texts": share,
        "matrix": matrix.tolist(),
        "sum over quanta less sum over kinds": float(np.abs(matrix.sum(1) - of_kinds).max()),
        "purity": float(
            np.mean(
                [
                    max(own.count(a) for own in quantum.values()) / sum(own.count(a) for own in quantum.values())
                    for a in accounts
                ]
            )
        ),
    }


def helpers(matrix: np.ndarray, kinds: list[str]) -> dict[str, str]:
    """For each kind the other one that lowered its loss most."""
    away = np.where(np.eye(len(kinds), dtype=bool), np.inf, matrix)
    return {kind: kinds[int(place)] for kind, place in zip(kinds, away.argmin(axis=1), strict=True)}


def show(matrix: np.ndarray, kinds: list[str]) -> None:
    """In thousandths of a nat."""
    print(" " * 24 + "".join(f"{kind[:7]:>8}" for kind in kinds))
    for kind, row in zip(kinds, matrix, strict=True):
        print(f"{kind:<24}" + "".join(f"{1000 * value:8.0f}" for value in row))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="CSV with the columns kind and text")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--constant-rate", action="store_true", help="no decay of the learning rate")
    parser.add_argument("--seeds", type=int, default=3, help="of the ledger, and of retraining")
    parser.add_argument("--no-retraining", action="store_true", help="the ledgers alone")
    parser.add_argument("--held-out", type=int, default=128, help="texts of each kind")
    parser.add_argument("--vocab", type=int, default=1024)
    parser.add_argument("--quanta", action="store_true", help="the first training again with quanta as accounts")
    parser.add_argument("--cache", type=Path, help="keep what each training gave here, and go on from it")
    parser.add_argument("--run", help="keep the first ledger in this run")
    parser.add_argument("--html", help="draw the flows beyond chance")
    parser.add_argument("--json", help="write the matrices and figures to this file")
    options = parser.parse_args()
    if not options.data.is_file():
        print(f"skipped: there is no {options.data}; name a CSV with the columns kind and text with --data")
        return
    cache = options.cache or Path(mkdtemp(prefix="plants_and_animals."))
    cache.mkdir(parents=True, exist_ok=True)
    texts = read_texts(options.data, options.held_out, options.vocab)
    study = Study(
        texts=texts, steps=options.steps, held_out=options.held_out, is_constant=options.constant_rate, cache=cache
    )
    kinds = texts.kinds
    found = [study.account(seed, options.run if seed == 0 else None) for seed in range(options.seeds)]
    halves = np.array([own.pop("matrix") for own in found])
    accounts = list(halves.sum(1))
    print(f"who lowered whose loss, in thousandths of a nat, over {options.steps} steps, mean of {len(found)} runs:")
    show(np.mean(accounts, axis=0), kinds)
    figures: dict[str, Any] = {
        "steps": options.steps,
        "learning rate": "constant" if options.constant_rate else "decayed to 0",
        "vocabulary": options.vocab,
        "held-out texts of a kind": options.held_out,
        **{name: max(own[name] for own in found) for name in found[0]},
    }
    value: dict[str, Any] = {"date": datetime.now(UTC).date().isoformat(), "kinds": kinds, "figures": figures}
    value["accounts"] = [own.tolist() for own in accounts]
    if len(kinds) > 2:
        flows = flows_beyond_chance(halves)
        pairs = flow_lines(flows, kinds)
        value["flows beyond chance"] = pairs
        print(f"{len(pairs)} of {len(kinds) * (len(kinds) - 1)} flows beyond chance (false discoveries 5 %):")
        for who, whose, size in pairs[:20]:
            print(f"  {who} {'helps' if size < 0 else 'hurts'} {whose}: {1000 * size:+.0f} beyond row and column")
        if options.html:
            meaning = f"beyond the means of row and column, the {min(DRAWN, len(pairs))} largest of {len(pairs)}"
            write_page(options.html, flows_page("Flows beyond chance", pairs[:DRAWN], meaning))
    if not options.no_retraining:
        retraining = [study.retrained(seed) for seed in range(options.seeds)]
        print("the same by retraining without each kind, mean of the seeds:")
        show(np.mean(retraining, axis=0), kinds)
        value["retraining"] = [matrix.tolist() for matrix in retraining]
        figures |= compared(accounts, retraining, kinds)
    if options.quanta:
        value["quanta"] = by_quanta(study, halves[0])
        figures["quanta"] = len(value["quanta"]["accounts"])
        figures["sum over quanta less sum over kinds"] = value["quanta"]["sum over quanta less sum over kinds"]
        figures["mean purity of the quanta"] = value["quanta"]["purity"]
    for name, figure in figures.items():
        print(f"{name}: {figure:.4g}" if isinstance(figure, float) else f"{name}: {figure}")
    if options.json:
        Path(options.json).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
