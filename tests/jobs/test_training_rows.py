"""Rows that are collected while a model trains, and the row set that they become."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from quantascope.attribution.blocks import find_blocks
from quantascope.attribution.engine import GradientEngine
from quantascope.attribution.ledger import Ledger
from quantascope.errors import ConfigurationError, CoverageError, MissingFieldError, RunMismatchError
from quantascope.jobs.collecting.config import RowConfig
from quantascope.jobs.data.source import DataSource
from quantascope.jobs.ledger.rows import EntryRows, TrainingRows, write_rows
from quantascope.jobs.ledger.trainer import RowTrainer, token_loss_sums
from quantascope.jobs.models.model import ModelSource
from quantascope.jobs.quanta.cluster import QuantaConfig, make_quanta
from quantascope.jobs.quanta.trace import Tracer
from quantascope.jobs.repair import repair
from tests.tiny import SENTENCES, save_tiny, write_jsonl

NUMBERS = 128


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    save_tiny(folder / "model", tied=True)
    rows = [{"text": text, "id": str(i)} for i, text in enumerate(SENTENCES * 3)]
    write_jsonl(folder / "data.jsonl", rows)
    return folder


@pytest.fixture
def model(place):
    return AutoModelForCausalLM.from_pretrained(place / "model").train()


@pytest.fixture(scope="module")
def tokens(place):
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    lines = (place / "data.jsonl").read_text().splitlines()
    return [torch.tensor(tokenizer(json.loads(line)["text"])["input_ids"][:24]) for line in lines]


def config():
    return RowConfig(projection="two-sided", dim=NUMBERS, shares="size")


def batch_of(tokens, documents):
    own = [tokens[d] for d in documents]
    ids = torch.nn.utils.rnn.pad_sequence(own, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(t) for t in own], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def mean_losses(model, batch):
    return token_loss_sums(model, batch) / (batch["labels"][:, 1:] >= 0).sum(1)


BATCHES = [[0, 9, 18], [3, 4], [5, 6, 7, 0]]


def train(model, tokens, rows=None):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for documents in BATCHES:
        batch = batch_of(tokens, documents)
        if rows is None:
            mean_losses(model, batch).mean().backward()
        else:
            with rows.batch(documents) as step:
                step.backward(mean_losses(model, batch))
        optimizer.step()
        optimizer.zero_grad()


def test_rows_are_the_engine_s_at_the_weights_of_their_step_and_training_is_the_plain_one(place, model, tokens):
    plain = AutoModelForCausalLM.from_pretrained(place / "model").train()
    train(plain, tokens)
    rows = TrainingRows(model, config=config())
    train(model, tokens, rows)
    for (name, own), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(own, other), name
    assert model.training
    assert all(p.requires_grad for p in model.parameters())

    fresh = AutoModelForCausalLM.from_pretrained(place / "model").train()
    optimizer = torch.optim.AdamW(fresh.parameters(), lr=1e-2)
    first = 0
    for number, documents in enumerate(BATCHES, start=1):
        batch = batch_of(tokens, documents)
        frozen = AutoModelForCausalLM.from_pretrained(place / "model")
        frozen.load_state_dict(fresh.state_dict())
        engine = GradientEngine(frozen, rows.projection, find_blocks(frozen).blocks)
        made = engine.rows(batch, mean_losses)
        last = first + len(documents)
        np.testing.assert_allclose(rows.read(first, last), made.rows.numpy(), rtol=2e-4, atol=2e-5)
        assert rows.columns()["step"][first:last].tolist() == [number] * len(documents)
        np.testing.assert_allclose(rows.columns()["loss"][first:last], made.losses.numpy(), rtol=1e-5)
        mean_losses(fresh, batch).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        first = last
    assert len(rows) == first == 9


def test_they_become_a_row_set_that_is_clustered_and_traced(place, model, tokens, tmp_path):
    rows = TrainingRows(model, config=config())
    for _ in range(4):
        train(model, tokens, rows)
    save(model, place, tmp_path / "trained")
    source = ModelSource(model=str(tmp_path / "trained"))
    data = DataSource(dataset=str(place / "data.jsonl"), id_field="id")
    row_set = write_rows(str(tmp_path / "run"), rows, model=source, data=data, max_tokens=24)
    units = row_set.units()
    assert units["document"].to_pylist() == [d for batch in BATCHES for d in batch] * 4
    assert units["step"].to_pylist() == [s for s in range(1, 13) for _ in BATCHES[(s - 1) % 3]]
    kept, stored = row_set.unit_rows()
    raw = rows.read(0, len(rows))
    assert len(kept) == 36
    np.testing.assert_allclose(stored, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=2e-3)

    from quantascope.storage import Run

    run = Run.open(tmp_path / "run")
    quanta = make_quanta(run, QuantaConfig(rows="training", num_halves=0))
    found = Tracer(quanta).trace("When John and Mary went to the", " store", k=3)
    assert len(found.supporting.unit) == 3
    with pytest.raises(RunMismatchError, match="choose another name"):
        write_rows(str(tmp_path / "run"), rows, model=source, data=data, max_tokens=24)
    with pytest.raises(RunMismatchError, match="has weights"):
        write_rows(str(tmp_path / "other"), rows, model=ModelSource(model=str(place / "model")), data=data)
    damaged = tmp_path / "run/rows/training/gradients/c/0/0"
    broken = bytes(byte ^ (at == 100) for at, byte in enumerate(damaged.read_bytes()))
    damaged.write_bytes(broken)
    done = repair(str(tmp_path / "run"))
    assert not done.mended
    assert "cannot be computed again" in done.left[0].detail
    assert damaged.read_bytes() == broken


def test_a_ledger_s_entries_become_a_row_set_too(place, model, tokens, tmp_path):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ledger = Ledger(model, optimizer, ["even", "odd"], keep_examples=True)
    for documents in BATCHES:
        with ledger.step(["even" if d % 2 == 0 else "odd" for d in documents], ids=[str(d) for d in documents]) as step:
            step.backward(mean_losses(model, batch_of(tokens, documents)))
            optimizer.step()
        optimizer.zero_grad()
    ledger.close()
    rows = EntryRows(ledger, model, config=config())
    documents = [d for batch in BATCHES for d in batch]
    blocks = find_blocks(model).blocks
    for kind, parity in (("even", 0), ("odd", 1)):
        entry, found = ledger.entry(kind), rows.read(0, 9)[[d % 2 == parity for d in documents]].sum(0)
        expected = [
            rows.projection.block(
                b.name, number=i, shape=(b.rows, b.columns), dtype=torch.float32, device=torch.device("cpu")
            ).project(b.matrix({p: entry[p][None] for p in b.parameters}))[0]
            for i, b in enumerate(blocks)
        ]
        np.testing.assert_allclose(found, -torch.cat(expected).numpy(), rtol=1e-3, atol=1e-6)
    save(model, place, tmp_path / "trained")
    source, data = ModelSource(model=str(tmp_path / "trained")), DataSource(dataset=str(place / "data.jsonl"))
    row_set = write_rows(str(tmp_path / "run"), rows, model=source, data=data, name="entries", max_tokens=24)
    assert row_set.plan["training"] == {"num_steps": 3, "rows": "entries"}
    assert row_set.units()["document"].to_pylist() == documents
    assert len(row_set.unit_rows()[0]) == 9
    nameless = Ledger(model, torch.optim.SGD(model.parameters()), ["a"], keep_examples=True)
    with pytest.raises(ConfigurationError, match="kept no examples"):
        EntryRows(nameless, model)


def test_the_trainer_keeps_the_rows_of_its_examples_mean_losses(place, model, tokens, tmp_path):
    class Examples(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, number):
            row = {name: value[0] for name, value in batch_of([t[:8] for t in tokens], [number]).items()}
            return row | {"document": number}

    trainer = RowTrainer(
        model=model, row_config=config(), train_dataset=Examples(), args=arguments(tmp_path, learning_rate=0.0)
    )
    trainer.train()
    columns = trainer.rows.columns()
    assert sorted(columns["document"].tolist()) == list(range(8))
    assert columns["step"].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]  # two batches of two in a step
    frozen = AutoModelForCausalLM.from_pretrained(place / "model")
    engine = GradientEngine(frozen, trainer.rows.projection, find_blocks(frozen).blocks)
    made = engine.rows(batch_of([t[:8] for t in tokens], columns["document"].tolist()), mean_losses)
    np.testing.assert_allclose(trainer.rows.read(0, 8), made.rows.numpy(), rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(columns["loss"], made.losses.numpy(), rtol=1e-5)


def test_batches_without_documents_and_rows_that_cannot_be_kept_are_refused(place, model, tokens, tmp_path):
    rows = TrainingRows(model, config=config())
    with pytest.raises(ConfigurationError, match="no rows to write"):
        write_rows(str(tmp_path / "run"), rows, model=ModelSource(model="nowhere"), data=DataSource(dataset="nowhere"))
    with pytest.raises(ConfigurationError, match="shared out by size"):
        TrainingRows(model, config=RowConfig())
    with pytest.raises(CoverageError, match="not autograd's"), rows.batch([0, 1]) as step:
        step.backward(mean_losses(model, batch_of(tokens, [0, 1])) + used_past_its_module(model))
    trainer = RowTrainer(model=model, train_dataset=[{"input_ids": tokens[0]}] * 4, args=arguments(tmp_path))
    with pytest.raises(MissingFieldError, match="has no column 'document'"):
        trainer.train()


def used_past_its_module(model):
    """Of a weight that a tap follows, a loss that it does not see."""
    return model.gpt_neox.layers[0].mlp.dense_h_to_4h.weight.square().sum()


def save(model, place, folder):
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(place / "model").save_pretrained(folder)


def arguments(folder, **options):
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_train_epochs=1,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
