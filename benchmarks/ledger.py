"""The ledger's books: do they balance, what do they cost, and do entries follow kinds that are permuted or split.

A GPT-NeoX of random weights is trained on bigram texts of 14 kinds, some of which share their bigrams. Weight books:
300 steps of AdamW with clipping, decay, warm-up and accumulation, in both precisions, beside the same training without
a ledger (100 steps with --quick); `kinds and decay` leaves the account of rounding out. Loss books: periods of 1 to 20
steps, split or not; `off the path` is how far the matrix is from that of single steps. Time: steps with and without a
ledger in turn, 8 examples of each of 14 kinds in a batch.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from result import Bar, arguments, finish
from torch.nn.functional import cross_entropy
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from quantascope.attribution.ledger import Evaluation, Ledger, SketchedLedger, example_entries, rank_one_entries
from quantascope.attribution.ledger.examples import shrinkage
from quantascope.jobs.ledger.rows import TrainingRows

NUM_KINDS = 14
KINDS = [f"{'even' if k % 2 == 0 else 'odd'}/{k}" for k in range(NUM_KINDS)]
Rename = Callable[[str, int], str]


class Texts:
    """Bigram texts: neighbours among the kinds share half of their bigrams."""

    def __init__(self, vocab: int, length: int, seed: int) -> None:
        chance = np.random.default_rng(seed)
        own = chance.integers(0, vocab, (NUM_KINDS, vocab))
        shared = chance.integers(0, vocab, ((NUM_KINDS + 1) // 2, vocab))
        use = chance.random((NUM_KINDS, vocab)) < 0.5
        self.following = np.where(use, shared[np.arange(NUM_KINDS) // 2], own)
        self.vocab, self.length = vocab, length

    def draw(self, chance: np.random.Generator, per_kind: int) -> tuple[torch.Tensor, list[str]]:
        kind = np.repeat(np.arange(NUM_KINDS), per_kind)
        ids = np.zeros((len(kind), self.length), np.int64)
        ids[:, 0] = chance.integers(0, self.vocab, len(kind))
        for at in range(1, self.length):
            stray = chance.random(len(kind)) < 0.1
            ids[:, at] = np.where(
                stray, chance.integers(0, self.vocab, len(kind)), self.following[kind, ids[:, at - 1]]
            )
        order = chance.permutation(len(kind))
        return torch.from_numpy(ids[order]), [KINDS[k] for k in kind[order]]


def losses_of(model: GPTNeoXForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    values = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return values.reshape(len(ids), -1).mean(1)


class Bench:
    def __init__(self, options: argparse.Namespace) -> None:
        self.quick, self.seed = options.quick, options.seed
        self.width, self.vocab, self.length = (16, 64, 12) if self.quick else (48, 256, 24)
        self.texts = Texts(self.vocab, self.length, self.seed)

    def model(self, dtype: torch.dtype = torch.float64, **size: int) -> GPTNeoXForCausalLM:
        torch.manual_seed(self.seed)
        width = size.get("width", self.width)
        config = GPTNeoXConfig(
            vocab_size=size.get("vocab", self.vocab),
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=4 * width,
            max_position_embeddings=size.get("length", self.length),
            bos_token_id=0,
            eos_token_id=0,
        )
        return GPTNeoXForCausalLM(config).to(dtype)

    def train(
        self,
        steps: int,
        dtype: torch.dtype = torch.float64,
        *,
        kinds: list[str] | None = None,
        rename: Rename = lambda label, _example: label,
        accumulate: int = 1,
        per_kind: int = 1,
        grade: type[Any] = Ledger,
        **books: Any,  # noqa: ANN401 - the ledger's own options
    ) -> tuple[GPTNeoXForCausalLM, Ledger | None]:
        """AdamW with clipping, decay and warm-up; without `kinds` no ledger is kept."""
        model = self.model(dtype)
        optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (step + 1) / 30))
        ledger = grade(model, optimiser, kinds, **books) if kinds else None
        chance = np.random.default_rng(self.seed + 1)
        for _ in range(steps):
            drawn = [self.texts.draw(chance, per_kind) for _ in range(accumulate)]
            total = sum(len(labels) for _, labels in drawn)
            if ledger is None:
                for ids, _ in drawn:
                    (losses_of(model, ids).sum() / total).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimiser.step()
            else:
                with ledger.step() as step:
                    for ids, labels in drawn:
                        step.begin([rename(label, example) for example, label in enumerate(labels)])
                        step.backward(losses_of(model, ids), divide_by=total)
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                    optimiser.step()
            schedule.step()
            optimiser.zero_grad()
        if ledger is not None:
            ledger.close()
        return model, ledger

    def weight_books(self) -> tuple[list[dict[str, Any]], list[Bar]]:
        rows, bars = [], []
        for dtype, limit in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
            steps = 100 if self.quick else 300
            plain, _ = self.train(steps, dtype, accumulate=2)
            kept, ledger = self.train(steps, dtype, kinds=KINDS, accumulate=2)
            assert ledger is not None
            sheet = ledger.balance()
            change = float(np.sqrt(sheet.change_square.sum()))
            without = _without_rounding(ledger) / change
            same = all(torch.equal(a, b) for a, b in zip(plain.parameters(), kept.parameters(), strict=True))
            name = str(dtype).removeprefix("torch.")
            rows.append(
                {
                    "what": f"weight books, {name}",
                    "residual": sheet.residual,
                    "kinds and decay": without,
                    "rounding in keys": _in_key_biases(ledger),
                }
            )
            bars.append(_at_most(f"weight books, {name}", sheet.residual, limit))
            bars.append(_at_most(f"weights that differ from plain training, {name}", float(not same), 0))
        return rows, bars

    def loss_books(self) -> tuple[list[dict[str, Any]], list[Bar]]:
        rows, bars, reference = [], [], None
        steps = 40 if self.quick else 300
        held_out = self.texts.draw(np.random.default_rng(self.seed + 2), 2 if self.quick else 4)
        start = time.perf_counter()
        self.train(steps, kinds=KINDS)
        alone = time.perf_counter() - start
        for period, max_panels in ((1, 1), (2, 8), (5, 8), (10, 1), (10, 8), (20, 8)):
            if self.quick and (period, max_panels) in ((2, 8), (20, 8)):
                continue
            evaluation = Evaluation(batches=[held_out], losses=losses_of, max_panels=max_panels)
            start = time.perf_counter()
            _, ledger = self.train(steps, kinds=KINDS, evaluation=evaluation, period_steps=period)
            assert ledger is not None
            sheet = ledger.loss_sheet()
            assert sheet is not None
            reference = sheet.matrix if reference is None else reference
            missed = float((sheet.missed / sheet.path).max())
            rows.append(
                {
                    "what": f"loss books, every {period}, {max_panels} panels",
                    "residual": missed,
                    "off the path": float(np.linalg.norm(sheet.matrix - reference) / np.linalg.norm(reference)),
                    "over weight books": (time.perf_counter() - start) / alone,
                }
            )
            if (period, max_panels) in ((1, 1), (10, 8)):
                bars.append(_at_most(f"loss books, every {period}, worst kind's Σ|residual| / Σ|change|", missed, 1e-3))
        return rows, bars

    def kinds(self) -> tuple[list[dict[str, Any]], list[Bar]]:
        """Entries of renamed kinds beside those of the kinds themselves."""
        steps = 20
        whole = self.train(steps, kinds=KINDS)[1]
        halves = [f"{KINDS[0]}/{half}" for half in "ab"]
        trials: dict[str, tuple[list[str], Rename]] = {
            "permuted": (KINDS[::-1], lambda label, _: label),
            "split": ([*halves, *KINDS[1:]], lambda label, i: f"{label}/{'ab'[i % 2]}" if label == KINDS[0] else label),
            "merged": (["even", "odd"], lambda label, _: label.split("/")[0]),
        }
        assert whole is not None
        rows = []
        for name, (kinds, rename) in trials.items():
            ledger = self.train(steps, kinds=kinds, rename=rename)[1]
            assert ledger is not None
            accounts = ["even", "odd", "decay"] if name == "merged" else [*KINDS, "decay"]
            worst = max(_distance(_flat(ledger.entry(a)), _flat(whole.entry(a))) for a in accounts)
            rows.append({"what": f"kinds {name}", "residual": worst})
        return rows, [_at_most(f"{row['what']}: worst entry's distance", row["residual"], 1e-9) for row in rows]

    def examples(self) -> tuple[list[dict[str, Any]], list[Bar]]:
        _, ledger = self.train(20, kinds=KINDS, accumulate=2, keep_examples=True)
        assert ledger is not None
        assert ledger.record is not None
        entries = example_entries(ledger.record)
        labels = [label for own in ledger.record.labels for label in own]
        gross = max(
            _distance(entries[[i for i, label in enumerate(labels) if label == k]].sum(0), _flat(ledger.entry(k)))
            for k in KINDS
        )
        first, last = _flat(ledger.books.start), _flat({n: p.detach() for n, p in ledger.books.parameters.items()})
        net = _distance(example_entries(ledger.record, net=True).sum(0), last - shrinkage(ledger.record) * first)
        found = {"single examples, gross": gross, "single examples, net": net}
        bars = [_at_most(n, v, 1e-10) for n, v in found.items()]
        rank_one = rank_one_entries(ledger.record)
        whole = _distance(rank_one.entries, entries)
        found |= {"rank-1 form": whole, "rank-1 form, worst example": float(rank_one.error.max())}
        return [{"what": n, "residual": v} for n, v in found.items()], bars

    def cost(self) -> tuple[list[dict[str, Any]], list[Bar]]:
        """Seconds of a step with a ledger over one without, in turn; memory of the books over the parameters'."""
        size = {"width": 64, "vocab": 512, "length": 32} if self.quick else {"width": 96, "vocab": 2048, "length": 64}
        chance = torch.Generator().manual_seed(self.seed)
        ids = torch.randint(0, size["vocab"], (8 * NUM_KINDS, size["length"]), generator=chance)
        labels = [KINDS[i % NUM_KINDS] for i in range(len(ids))]
        plain, kept = self.model(torch.float32, **size), self.model(torch.float32, **size)
        plain_optimiser, optimiser = (torch.optim.AdamW(m.parameters(), lr=1e-3) for m in (plain, kept))
        ledger = Ledger(kept, optimiser, KINDS)
        ratios = []
        for number in range(8 if self.quick else 12):
            start = time.perf_counter()
            losses_of(plain, ids).mean().backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            plain_optimiser.step()
            plain_optimiser.zero_grad()
            middle = time.perf_counter()
            with ledger.step(labels) as step:
                step.backward(losses_of(kept, ids))
                torch.nn.utils.clip_grad_norm_(kept.parameters(), 1.0)
                optimiser.step()
            optimiser.zero_grad()
            if number > 1:
                ratios.append((time.perf_counter() - middle) / (middle - start))
        ratio = float(np.median(ratios))
        held = sum(
            t.numel()
            for buffers in (ledger.books.tensors(), {"g": ledger.books.gradients})
            for own in buffers.values()
            for t in own.values()
        )
        copies = held / sum(p.numel() for p in kept.parameters())
        row = {"what": "cost, 14 kinds of 8", "time over plain": ratio, "copies of the weights": copies}
        return [row], [_at_most("time over plain training, 14 kinds with 8 examples each", ratio, 2.5)]

    def sketched(self) -> tuple[list[dict[str, Any]], list[Bar]]:
        """CPU seconds of a step over plain training, in turn: the sketched grade, and rows of every single example.

        Both in the training's own backward pass; a model 512 wide, with 896 tokens in a batch (1,792 without --quick).
        The sketched grade with its audit at every 100th step, whose backward pass is spread over these; rows as
        `TrainingRows` keeps them, written to a file at every step.
        """
        size = {"width": 512, "vocab": 2048, "length": 64}
        per_kind = 1 if self.quick else 2
        chance = torch.Generator().manual_seed(self.seed)
        ids = torch.randint(0, size["vocab"], (per_kind * NUM_KINDS, size["length"]), generator=chance)
        labels = [KINDS[i % NUM_KINDS] for i in range(len(ids))]
        models = {name: self.model(torch.float32, **size) for name in ("plain", "sketched", "audited", "rows")}
        optimisers = {name: torch.optim.AdamW(m.parameters(), lr=1e-3) for name, m in models.items()}
        ledger = SketchedLedger(models["sketched"], optimisers["sketched"], KINDS)
        audited = SketchedLedger(models["audited"], optimisers["audited"], KINDS, audit_steps=1)
        rows_of = TrainingRows(models["rows"])
        seconds: dict[str, list[float]] = {name: [] for name in models}
        for number in range(20 if self.quick else 40):
            for name, model in models.items():
                start = time.process_time()
                if name in ("sketched", "audited"):
                    with (ledger if name == "sketched" else audited).step(labels) as step:
                        step.backward(losses_of(model, ids))
                        _step(model, optimisers[name])
                elif name == "rows":
                    with rows_of.batch(range(len(ids))) as batch:
                        batch.backward(losses_of(model, ids))
                    _step(model, optimisers[name])
                else:
                    losses_of(model, ids).mean().backward()
                    _step(model, optimisers[name])
                if number > 10:  # the first steps are periods of their own
                    seconds[name].append(time.process_time() - start)
        ratios = {n: float(np.sum(seconds[n]) / np.sum(seconds["plain"])) for n in models}
        ratios["sketched"] += (ratios["audited"] - ratios["sketched"]) / 100
        rows: list[dict[str, Any]] = [
            {"what": "cost, sketched grade, 512 wide", "time over plain": ratios["sketched"]},
            {"what": "cost, rows kept in training", "time over plain": ratios["rows"]},
        ]
        bars = [_at_most(f"{row['what']}: over plain training", row["time over plain"], 1.1) for row in rows]
        return rows, bars

    def sketched_residual(self) -> tuple[list[dict[str, Any]], list[Bar]]:
        """The sketched grade's residual, and how far its shares are from those of the exact grade on the same run."""
        steps = 100 if self.quick else 300
        _, exact = self.train(steps, torch.float32, kinds=KINDS, accumulate=2)
        _, kept = self.train(steps, torch.float32, kinds=KINDS, accumulate=2, grade=SketchedLedger, audit_steps=10)
        assert exact is not None
        assert kept is not None
        sheet, whole = kept.balance(), exact.balance()
        exact_shares = dict(zip(whole.accounts, whole.shares, strict=True))
        apart = max(abs(s - exact_shares[a]) for a, s in zip(sheet.accounts, sheet.shares, strict=True))
        audit = kept.grade["audit"]
        row = {"what": "sketched grade", "residual": sheet.residual, "worst share, apart": float(apart)}
        audited = {"what": f"its audit, {audit['steps']} steps of one kind", "residual": audit["residual"]}
        return [row, audited], []

    def interactions(self) -> tuple[list[dict[str, Any]], list[Bar]]:
        """Pairs of four kinds, beside the loss books and the gradient's own change."""
        steps, groups = (20, 60)[not self.quick], [f"group {i}" for i in range(4)]
        ids, labels = self.texts.draw(np.random.default_rng(self.seed + 2), 2)

        def group(label: str, _example: int = 0) -> str:
            return groups[int(label.split("/")[1]) % 4]

        evaluation = Evaluation(
            batches=[(ids, [group(label) for label in labels])], losses=losses_of, interactions=True
        )
        _, ledger = self.train(steps, kinds=groups, rename=group, evaluation=evaluation, period_steps=2)
        assert ledger is not None
        sheet, pairs = ledger.loss_sheet(), ledger.interactions()
        assert sheet is not None
        assert pairs is not None
        apart = float(np.linalg.norm(pairs.matrix - sheet.matrix) / np.linalg.norm(sheet.matrix))
        sizes = {
            n: float(np.abs(v).sum())
            for n, v in (("first", pairs.first), ("across", pairs.across), ("within", pairs.within))
        }
        row = {"what": "interactions, 4 kinds", "residual": apart, "off the path": float(pairs.missed.max())} | sizes
        return [row], [_at_most("interactions: distance of their sums from the loss books", apart, 1e-2)]


def _step(model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> None:
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad()


def _in_key_biases(ledger: Ledger) -> float:
    """The share of the rounding account's squared norm that lies in the biases of attention's keys."""
    keys, whole = 0.0, 0.0
    for name in ledger.books.parameters:
        rounding = ledger.books.entries(name)[-2].double()
        whole += float(rounding.square().sum())
        if name.endswith("query_key_value.bias"):  # [head, (query, key, value), number]
            keys += float(rounding.view(2, 3, -1)[:, 1].square().sum())
    return keys / max(whole, 1e-300)


def _without_rounding(ledger: Ledger) -> float:
    """Norm of w_T − w_0 without kinds and decay, the account of rounding left out."""
    square = 0.0
    for name in ledger.books.parameters:
        entries = ledger.books.entries(name)
        left = ledger.books.change(name).double() - entries.double().sum(0) + entries[-2].double()
        square += float(left.square().sum())
    return square**0.5


def _flat(values: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([v.flatten() for v in values.values()])


def _distance(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).norm() / second.norm())


def _at_most(name: str, value: float, limit: float) -> Bar:
    return Bar(name=name, value=value, limit=limit, holds=value <= limit)


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    torch.set_num_threads(options.threads)
    bench = Bench(options)
    rows: list[dict[str, Any]] = []
    bars: list[Bar] = []
    parts = (bench.cost, bench.sketched, bench.sketched_residual, bench.weight_books, bench.loss_books, bench.kinds)
    for part in (*parts, bench.examples, bench.interactions):
        found, own = part()
        rows += found
        bars += own
    columns = (
        "what",
        "residual",
        "kinds and decay",
        "rounding in keys",
        "off the path",
        "over weight books",
        "time over plain",
    )
    more = ("copies of the weights", "worst share, apart", "first", "across", "within")
    finish("ledger", (*columns, *more), rows, bars, options)


if __name__ == "__main__":
    main()
