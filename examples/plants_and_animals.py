"""What fourteen kinds of text did to a small language model: the ledger's account beside retraining without each kind.

Trains a small GPT-NeoX on short abstracts in 14 kinds (a CSV file with the columns kind and text), with a ledger that
books who moved the weights and who lowered whose held-out loss. Then trains again without each kind in turn, from the
same start and on the same batches otherwise, and compares: an account of one run is no counterfactual, and this is how
far apart the two are.

    python examples/plants_and_animals.py                        # 300 steps, one ledger, two seeds of retraining
    python examples/plants_and_animals.py --steps 100 --seeds 1
    python examples/plants_and_animals.py --run runs/kinds       # and keep the ledger: quantascope ledger runs/kinds

About a second and a half of one core for each step of each training, of which there are 15 to a seed, and one more.
"""

import argparse
import csv
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from quantascope.attribution.ledger import Evaluation, Ledger
from quantascope.jobs.ledger.keeping import write_ledger

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "dbpedia.csv"
WINDOW = 64
PER_KIND = 4


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


def train(
    texts: Texts, steps: int, seed: int, *, without: str | None = None, books: bool = False
) -> tuple[np.ndarray, Ledger | None]:
    """Train, and return each kind's held-out loss at the end, with the ledger if one was kept."""
    model = make_model(texts, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / (steps // 10 or 1)))
    held_out = [(own, [kind] * len(own)) for kind, own in texts.held_out.items()]
    evaluation = Evaluation(batches=held_out, losses=losses, max_panels=16)
    ledger = Ledger(model, optimizer, texts.kinds, evaluation=evaluation, period_steps=10) if books else None
    chance = random.Random(seed)
    for _ in range(steps):
        chosen = {kind: [chance.randrange(len(own)) for _ in range(PER_KIND)] for kind, own in texts.training.items()}
        kinds = [kind for kind in texts.kinds if kind != without]
        ids = torch.cat([texts.training[kind][chosen[kind]] for kind in kinds])
        if ledger is None:
            losses(model, ids).mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        else:
            with ledger.step([kind for kind in kinds for _ in range(PER_KIND)]) as step:
                step.backward(losses(model, ids))
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    if ledger is not None:
        ledger.close()
    model.eval()
    with torch.no_grad():
        found = [float(losses(model, own).mean()) for own in texts.held_out.values()]
    return np.array(found), ledger


def retrained(texts: Texts, steps: int, seed: int) -> np.ndarray:
    """[kind whose loss, kind left out]: what the presence of each kind changed, by training without it."""
    whole, _ = train(texts, steps, seed)
    columns = []
    for kind in texts.kinds:
        columns.append(whole - train(texts, steps, seed, without=kind)[0])
        print(f"  seed {seed}: trained without {kind}", flush=True)
    return np.stack(columns, axis=1)


def spearman(first: np.ndarray, second: np.ndarray, *, centred: bool = False) -> float:
    """Rank correlation of two matrices off their diagonals; `centred` takes out the rows' and the columns' means."""
    away = ~np.eye(len(first), dtype=bool)
    values = []
    for matrix in (first, second):
        if centred:
            matrix = centre(matrix)
        values.append(np.argsort(np.argsort(matrix[away])).astype(float))
    return float(np.corrcoef(values)[0, 1])


def centre(matrix: np.ndarray) -> np.ndarray:
    """The matrix without row and column means of its entries off the diagonal, found by alternating."""
    result = np.where(np.eye(len(matrix), dtype=bool), np.nan, matrix)
    for _ in range(50):
        result = result - np.nanmean(result, axis=1, keepdims=True)
        result = result - np.nanmean(result, axis=0, keepdims=True)
    return np.nan_to_num(result)


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
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2, help="seeds of retraining; 0 keeps the ledger alone")
    parser.add_argument("--held-out", type=int, default=32, help="texts of each kind")
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--run", help="keep the ledger in this run")
    parser.add_argument("--json", help="write the matrices and figures to this file")
    options = parser.parse_args()
    if not options.data.is_file():
        print(f"skipped: there is no {options.data}; name a CSV with the columns kind and text with --data")
        return
    texts = read_texts(options.data, options.held_out, options.vocab)
    start = time.perf_counter()
    _, ledger = train(texts, options.steps, 0, books=True)
    assert ledger is not None
    seconds = time.perf_counter() - start
    sheet, balance = ledger.loss_sheet(), ledger.balance()
    assert sheet is not None
    order = [sheet.accounts.index(kind) for kind in texts.kinds]
    account = sheet.matrix[[sheet.kinds.index(kind) for kind in texts.kinds]][:, order]
    if options.run:
        write_ledger(options.run, ledger, facts={"data": options.data.name, "steps": options.steps, "seed": 0})
    print(f"who lowered whose loss, in thousandths of a nat, over {options.steps} steps ({seconds:.0f} s):")
    show(account, texts.kinds)
    figures: dict[str, Any] = {
        "steps": options.steps,
        "seconds with the ledger": seconds,
        "weight residual": balance.residual,
        "loss residual over path, worst kind": float((sheet.missed / sheet.path).max()),
        "greatest helpers, account": helpers(account, texts.kinds),
    }
    matrices = []
    for seed in range(options.seeds):
        start = time.perf_counter()
        matrices.append(retrained(texts, options.steps, seed))
        mean = np.mean(matrices, axis=0)
        figures |= {
            "seeds": seed + 1,
            "seconds of one seed": time.perf_counter() - start,
            "Spearman, account and retraining": spearman(account, mean),
            "the same, centred": spearman(account, mean, centred=True),
            "greatest helpers, retraining": helpers(mean, texts.kinds),
        }
        if seed:
            figures["Spearman, two retraining seeds"] = spearman(matrices[0], matrices[1])
            figures["two retraining seeds, centred"] = spearman(matrices[0], matrices[1], centred=True)
        if options.json:
            value = {"kinds": texts.kinds, "figures": figures, "account": account.tolist()}
            value["retraining"] = [matrix.tolist() for matrix in matrices]
            Path(options.json).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    if matrices:
        print("the same by retraining without each kind, mean of the seeds:")
        show(np.mean(matrices, axis=0), texts.kinds)
    for name, value in figures.items():
        print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")


if __name__ == "__main__":
    main()
