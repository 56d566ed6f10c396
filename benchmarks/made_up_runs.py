"""Runs with as many documents and units as one likes, made without a model's work."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from quantascope.jobs.collecting.candidates import SCAN_BATCH
from quantascope.jobs.collecting.config import SelectionConfig
from quantascope.jobs.collecting.select import Selecting
from quantascope.jobs.collecting.worker import Worker
from quantascope.storage import RowBlock, Run
from quantascope.storage.documents import Totals
from quantascope.storage.local import LocalStore
from quantascope.storage.tables import write_table

SHARD_DOCUMENTS = 20_000


def words(seed: int, count: int) -> list[str]:
    """Made-up words of two to nine letters."""
    chance = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    odds = 1 / np.arange(2, 28)
    return ["".join(chance.choice(letters, int(size), p=odds / odds.sum())) for size in chance.integers(2, 10, count)]


def texts(seed: int, *, num_documents: int, num_words: int) -> Iterator[str]:
    """Documents of made-up words, common ones more often."""
    chance = np.random.default_rng(seed)
    known = np.array(words(seed, 6000))
    odds = 1 / np.arange(1, len(known) + 1)
    for _ in range(num_documents):
        yield " ".join(chance.choice(known, num_words, p=odds / odds.sum()))


def save_model(folder: Path, model: PreTrainedModel, seed: int) -> None:
    """The model with a byte-pair tokenizer of its vocabulary's size."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=model.config.vocab_size, special_tokens=["<|endoftext|>"], show_progress=False
    )
    backend.train_from_iterator(texts(seed, num_documents=200, num_words=2000), trainer)
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, pad_token=end).save_pretrained(folder)
    model.save_pretrained(folder)


def write_documents(run: Run, *, num_documents: int, num_tokens: int, seed: int) -> None:
    """Documents of random tokens, as a collection would have read them."""
    chance = np.random.default_rng(seed)
    totals = Totals()
    for first in range(0, num_documents, SHARD_DOCUMENTS):
        count = min(SHARD_DOCUMENTS, num_documents - first)
        edges = pa.array(np.arange(count + 1, dtype=np.int32) * num_tokens)
        starts = np.tile(np.arange(num_tokens, dtype=np.int32), count)
        numbers = [str(number) for number in range(first, first + count)]
        lists = {
            "tokens": chance.integers(0, 300, count * num_tokens).astype(np.int32),
            "starts": starts,
            "ends": starts + 1,
            "counts": np.ones(count * num_tokens, np.bool_),
        }
        table = pa.table(
            {
                "document": np.arange(first, first + count),
                "row": np.arange(first, first + count),
                "source": pa.array(["made up"] * count),
                "user_id": pa.array(numbers),
                "sha256": pa.array(["0" * 64] * count),
            }
            | {name: pa.ListArray.from_arrays(edges, pa.array(values)) for name, values in lists.items()}
        )
        sha256 = write_table(run.store, run.documents.shard_key(len(totals.shards)), table)
        totals.add(sha256, num_documents=count, num_tokens=count * num_tokens)
    run.documents.finish(totals, tokenizer="{}")


class MadeUpWorker(Worker):
    """Finds every token, and commits random rows: all that a worker does but the model's work."""

    def scan(self, task: int) -> dict[str, Any]:
        def losses(windows: np.ndarray) -> list[np.ndarray]:
            assert len(windows) <= SCAN_BATCH
            return [np.concatenate([[np.inf], np.zeros(e - f - 1)]).astype(np.float32) for _, f, e in windows.tolist()]

        return self._selecting.scan(task, losses)

    def collect(self, block: int) -> dict[str, Any]:
        first, last = self._set.block_range(block)
        units = self._set.selected.slice(first, last)
        for document in set(units["document"].to_pylist()):
            self._run.documents[document].tokens.sum()
        shape = (last - first, int(self._set.plan["dim"]))
        rows = np.random.default_rng(block).normal(size=shape).astype(np.float32)
        norms = np.ones((last - first, len(self._set.plan["blocks"])), np.float32)
        return self._set.commit(block, RowBlock(rows=rows, block_norms=norms, units=units)) | {"num_tokens": 0}

    def peak_bytes(self) -> int:
        """The most memory that this process has held."""
        return peak_bytes()


def candidates(first: int, count: int) -> pa.Table:
    """One unit of each of some documents, as a task finds them."""
    zeros = np.zeros(count, np.int32)
    return pa.table(
        {
            "document": np.arange(first, first + count),
            "first_token": zeros,
            "last_token": zeros + 49,
            "text_start": zeros,
            "text_end": zeros + 50,
            "loss": np.full(count, np.nan, np.float32),
            "cut_tokens": zeros,
        }
    )


class MadeUpShards:
    """As many shards as wanted, of a million units each, all alike."""

    def __init__(self) -> None:
        self._table = candidates(0, 1_000_000)

    def clear_others(self) -> None:
        """There are none."""

    def missing(self, _: object) -> list[int]:
        return []

    def record(self, number: int) -> dict[str, Any]:
        return {"number": number, "rows": len(self._table), "facts": {}}

    def table(self, _: int) -> pa.Table:
        return self._table


class SimulatedSelecting(Selecting):
    """A selection of which only the driver's part is done."""

    def __init__(self, num_units: int) -> None:
        self._config = SelectionConfig(unit_type="document")
        self._tasks = num_units // 1_000_000
        self.shards = MadeUpShards()  # type: ignore[assignment,misc]

    @property
    def num_tasks(self) -> int:
        return self._tasks


class Nowhere(LocalStore):
    """Takes large files and keeps none of their bytes."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.num_bytes = 0

    def replace(self, key: str, data: bytes | Iterable[bytes]) -> None:
        if key.endswith(".parquet"):
            self.num_bytes += sum(len(piece) for piece in ([data] if isinstance(data, bytes) else data))
        else:
            super().replace(key, data)


def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
