"""Your own model and your own data, from nothing to a report, in about half a minute on two cores.

Makes a small data set of three kinds of text (JSON lines) and a tiny language model that has learned it, collects the
model's gradient rows, clusters them into quanta, traces a behaviour and writes a report:

    python examples/own_model.py            # in a temporary folder, whose name is printed
    python examples/own_model.py own        # in the folder own: model, data.jsonl, run, report.html

With a model of yours only `collect_rows` and what comes after it are needed; the command line does the same.
"""

import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

import quantascope
from quantascope.jobs.collecting.collect import Collection, collect
from quantascope.jobs.collecting.config import RowConfig, SelectionConfig, SetConfig
from quantascope.jobs.data.source import DataSource
from quantascope.jobs.models.model import ModelSource
from quantascope.jobs.quanta.cluster import QuantaConfig, make_quanta, measure
from quantascope.jobs.workers.ray_session import RayOptions
from quantascope.storage import Run

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
SOUNDS = {"dog": "woof", "cat": "meow", "cow": "moo", "duck": "quack", "owl": "hoot", "sheep": "baa"}
CONTEXT_TOKENS = 64


def make_documents(num_documents: int, seed: int = 0) -> list[dict[str, str]]:
    """Documents of three kinds: counting, days of the week, and the sounds of animals."""
    chance = random.Random(seed)
    documents = []
    for number in range(num_documents):
        kind = ("counting", "days", "animals")[number % 3]
        documents.append({"id": f"{kind}-{number}", "kind": kind, "text": make_text(kind, chance)})
    return documents


def make_text(kind: str, chance: random.Random) -> str:
    """One document of a kind."""
    if kind == "counting":
        first = chance.randrange(4)
        return "I count: " + ", ".join(NUMBERS[first : first + 8]) + "."
    if kind == "days":
        first = chance.randrange(7)
        return "The week goes on: " + ", ".join((DAYS * 2)[first : first + 7]) + "."
    chosen = chance.sample(sorted(SOUNDS), 4)
    return " ".join(f"The {animal} says {SOUNDS[animal]}." for animal in chosen)


def train_tiny_model(documents: list[dict[str, str]], folder: Path, num_steps: int = 150) -> None:
    """Train a tokenizer and a two-layer GPT-NeoX on the documents, and save both in one folder."""
    texts = [document["text"] for document in documents]
    tokenizer = train_tokenizer(texts)
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=CONTEXT_TOKENS,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPTNeoXForCausalLM(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    encoded: Any = tokenizer(texts, return_tensors="pt", padding=True)
    labels = encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, -100)
    for _ in range(num_steps):
        batch = torch.randint(len(texts), (16,))
        loss = model(input_ids=encoded["input_ids"][batch], labels=labels[batch]).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    print(f"trained {num_steps} steps, loss {loss.item():.2f} nats per token")
    disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_tokenizer(texts: list[str]) -> Any:  # noqa: ANN401 - transformers is untyped
    """A byte-level BPE of these texts. A fast tokenizer is needed: it knows which characters a token covers."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>", padding_side="right"
    )


def collect_rows(folder: Path) -> None:
    """Gradient rows of single tokens' losses, and of whole windows. An interrupted collection goes on by itself."""
    selections = (
        SelectionConfig(unit_type="token-loss", max_loss=0.5, max_units=400),
        SelectionConfig(unit_type="window", max_units=60),
    )
    for selection in selections:
        collected = collect(
            Collection(
                out=str(folder / "run"),
                model=ModelSource(model=str(folder / "model")),
                data=DataSource(dataset=str(folder / "data.jsonl"), id_field="id", label_fields=("kind",)),
                config=SetConfig(selection=selection, rows=RowConfig(dim=1024)),
            ),
            RayOptions(),
        )
        print(f"{collected.num_units} {selection.unit_type} rows of {collected.dim} numbers")


def find_quanta(folder: Path) -> None:
    """Cluster the token rows, and measure what the clusters are worth."""
    run = Run.open(folder / "run")
    with run.store.lock():
        quanta = make_quanta(run, QuantaConfig())
        for row in measure(quanta)["rows"]:
            if "next_token" in row:
                found = row["next_token"]
                print(f"{row['name']}: next token {found['value']:.2f}, shuffled clusters {found['null_99']:.2f}")


def ask(folder: Path) -> None:
    """The largest quanta, a trace, and the report."""
    client = quantascope.connect(folder / "run")
    for quantum in client.quanta()[:10]:
        print(f"quantum {quantum.id}: {quantum.label} ({quantum.size} units, {quantum.num_documents} documents)")
    trace = client.trace("The dog says woof. The cow says", " moo", k=3)
    for unit in trace.units:
        print(f"{unit.score:.2f}  {unit.labels['kind']}: …{unit.context[-40:]}[{unit.target}]")
    print(f"novelty {trace.novelty:.2f}")
    with client.run.store.lock():
        client.save_trace("a cow's sound", trace)
    print(client.report(folder / "report.html"))


def main() -> None:
    """Run every step in the folder that was named, or in a temporary one."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="quantascope-example-")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    documents = make_documents(240)
    (folder / "data.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
    train_tiny_model(documents, folder / "model")
    collect_rows(folder)
    find_quanta(folder)
    ask(folder)


if __name__ == "__main__":
    main()
