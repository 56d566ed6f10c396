"""The Trainer with a ledger, a ledger's state on disk, and its sheets in a run."""

import numpy as np
import pytest
import torch
from transformers import TrainingArguments

from quantascope.attribution.ledger import Evaluation, Ledger
from quantascope.errors import (
    ConfigurationError,
    DamagedRunError,
    MissingFieldError,
    RunMismatchError,
    RunNotFoundError,
)
from quantascope.jobs.ledger.keeping import load_state, read_ledger, save_state, write_ledger
from quantascope.jobs.ledger.trainer import STATE_FILE, LedgerTrainer, token_loss_sums
from quantascope.storage import Run
from tests.attribution.ledger_oracle import KINDS, batches, losses_of, neox, positions, weights

NAMES = ["animal", "plant"]


class Examples(torch.utils.data.Dataset):
    """Token windows with labels of their own, of which some do not count, and a kind."""

    def __init__(self, kinds=True, size=12):
        chance = torch.Generator().manual_seed(0)
        self.ids = torch.randint(1, 32, (size, 8), generator=chance)
        self.kinds = kinds

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, number):
        labels = self.ids[number].clone()
        labels[: number % 5] = -100
        row = {"input_ids": self.ids[number], "labels": labels}
        return row | ({"kind": number % 3 % 2} if self.kinds else {})


def arguments(folder, **options):
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        weight_decay=0.1,
        max_grad_norm=0.2,
        warmup_steps=2,
        num_train_epochs=2,
        logging_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=3,
        **({"save_strategy": "no"} | options),
    )


def trainer(folder, data=None, kinds=NAMES, model=None, **options):
    return LedgerTrainer(
        model=model or neox("float32"),
        args=arguments(folder, **options),
        train_dataset=data or Examples(),
        kinds=kinds,
    )


def test_the_trainer_trains_as_without_a_ledger_and_its_books_balance(tmp_path):
    from transformers import Trainer

    kept = trainer(tmp_path)
    kept.train()
    plain = Trainer(model=neox("float32"), args=arguments(tmp_path), train_dataset=_without_kinds())
    plain.train()
    for (name, first), second in zip(kept.model.named_parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5, msg=name)
    sheet = kept.ledger.balance()
    assert sheet.num_steps == 6
    assert sheet.residual < 1e-5
    assert (sheet.norms[:2] > 0.01).all()


def _without_kinds():
    return Examples(kinds=False)


def test_token_loss_sums_are_what_the_model_itself_says():
    model = neox("float64")
    rows = [Examples()[i] for i in range(4)]
    inputs = {k: torch.stack([r[k] for r in rows]) for k in ("input_ids", "labels")}
    found = token_loss_sums(model, inputs)
    for row, value in zip(rows, found, strict=True):
        own = {k: row[k][None] for k in ("input_ids", "labels")}
        count = int((row["labels"][1:] != -100).sum())
        assert model(**own).loss.item() * count == pytest.approx(value.item(), rel=1e-6)


def test_going_on_from_a_checkpoint_gives_the_same_bits_and_needs_the_ledgers_file(tmp_path):
    # tied: where a head of its own is stored under another name, transformers 5.23 goes on with a random one
    first = trainer(tmp_path / "whole", model=neox("float32", tied=True), save_strategy="steps", save_steps=3)
    first.train()
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    assert (checkpoint / STATE_FILE).is_file()
    again = trainer(tmp_path / "again", model=neox("float32", tied=True))
    again.train(resume_from_checkpoint=str(checkpoint))
    for name, value in weights(first.model).items():
        assert torch.equal(value, weights(again.model)[name])
    for name in first.ledger.books.parameters:
        assert torch.equal(first.ledger.books.entries(name), again.ledger.books.entries(name))
    (checkpoint / STATE_FILE).unlink()
    with pytest.raises(RunNotFoundError, match=r"ledger\.safetensors is missing"):
        trainer(tmp_path / "lost", model=neox("float32", tied=True)).train(resume_from_checkpoint=str(checkpoint))


def test_batches_without_kinds_and_with_unknown_ones_are_refused(tmp_path):
    with pytest.raises(MissingFieldError, match="no column 'kind'; it has input_ids, labels"):
        trainer(tmp_path, data=Examples(kinds=False)).train()
    with pytest.raises(ConfigurationError, match="kind 1; kinds are numbered 0 to 0"):
        trainer(tmp_path, kinds=["animal"]).train()
    with pytest.raises(ConfigurationError, match="Adafactor"):
        trainer(tmp_path, optim="adafactor").train()
    with pytest.raises(ConfigurationError, match="one loss per example"):
        trainer(tmp_path, label_smoothing_factor=0.1)


def keep(num_steps=7, **options):
    model = positions(torch.float32)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    held_out = Evaluation(batches=batches(1, seed=4), losses=losses_of)
    ledger = Ledger(model, optimiser, KINDS, evaluation=held_out, **options)
    for ids, labels in batches(num_steps):
        with ledger.step(labels) as step:
            step.backward(losses_of(model, ids))
            optimiser.step()
        optimiser.zero_grad()
    return ledger


def test_a_state_on_disk_has_the_ledgers_bits(tmp_path):
    ledger = keep(period_steps=3)
    path = save_state(ledger, tmp_path / "state.safetensors")
    assert list(tmp_path.iterdir()) == [path]
    model = positions(torch.float32)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    other = Ledger(
        model,
        optimiser,
        KINDS,
        evaluation=Evaluation(batches=batches(1, seed=4), losses=losses_of),
        period_steps=3,
    )
    with pytest.raises(RunMismatchError, match="other weights"):
        load_state(other, path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in ledger.books.parameters:
                parameter.copy_(ledger.books.parameters[name])
    load_state(other, path)
    there, here = ledger.state_dict(), other.state_dict()
    assert there["facts"] == here["facts"]
    assert there["tensors"].keys() == here["tensors"].keys()
    assert all(torch.equal(t, here["tensors"][n]) for n, t in there["tensors"].items())
    data = path.read_bytes()
    path.write_bytes(data[:100])
    with pytest.raises(DamagedRunError, match=r"state\.safetensors is damaged"):
        load_state(other, path)
    path.unlink()
    with pytest.raises(RunNotFoundError, match="must be kept with each checkpoint"):
        load_state(other, path)


@pytest.mark.parametrize("evaluated", [True, False])
def test_sheets_come_back_from_a_run_as_they_were(tmp_path, evaluated):
    ledger = keep(period_steps=3)
    if not evaluated:
        ledger._loss_books = None
    ledger.close()
    write_ledger(tmp_path / "run", ledger, name="kinds", facts={"seed": 1})
    stored = read_ledger(Run.open(tmp_path / "run"), "kinds")
    assert stored.facts == {"seed": 1}
    for found, expected in (
        (stored.balance, ledger.balance()),
        (stored.losses, ledger.loss_sheet()),
        (stored.course, ledger.course()),
    ):
        if expected is None:
            assert found is None
            continue
        for field in expected.__slots__:
            value = getattr(expected, field)
            if isinstance(value, np.ndarray):
                np.testing.assert_allclose(getattr(found, field), value, rtol=1e-14, err_msg=field)
            else:
                assert getattr(found, field) == value
    derived = Run.open(tmp_path / "run").derived("ledger", "kinds")
    entries = derived.table("entries").to_pandas()
    sheet = ledger.balance()
    whole = entries[(entries["first_step"] == 1) & (entries["last_step"] == 7)]
    assert whole.groupby("account")["share"].sum()["place"] == pytest.approx(sheet.shares[2])
    assert sorted(set(entries["last_step"])) == [3, 6, 7]
    write_ledger(tmp_path / "run", ledger, name="kinds", facts={"seed": 2})
    assert read_ledger(Run.open(tmp_path / "run"), "kinds").facts == {"seed": 2}
    with pytest.raises(RunNotFoundError, match="no ledger named 'other'; it has kinds"):
        read_ledger(Run.open(tmp_path / "run"), "other")


def test_the_trainer_keeps_a_sketched_ledger_and_says_what_that_cannot_do(tmp_path):
    kept = LedgerTrainer(
        model=neox("float32"),
        args=arguments(tmp_path, save_strategy="steps", save_steps=3),
        train_dataset=Examples(),
        kinds=NAMES,
        grade="sketched",
    )
    kept.train()
    exact = trainer(tmp_path / "exact")
    exact.train()
    sheet = kept.ledger.balance()
    assert sheet.num_steps == exact.ledger.balance().num_steps == 6
    assert sheet.accounts == (*NAMES, "decay")
    assert sheet.residual < 1
    assert not (tmp_path / "checkpoint-3" / STATE_FILE).exists()
    for first, second in zip(kept.model.parameters(), exact.model.parameters(), strict=True):
        assert torch.equal(first, second)
    again = LedgerTrainer(
        model=neox("float32"), args=arguments(tmp_path), train_dataset=Examples(), kinds=NAMES, grade="sketched"
    )
    with pytest.raises(ConfigurationError, match="cannot go on from a checkpoint"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    with pytest.raises(ConfigurationError, match="has no loss books"):
        LedgerTrainer(model=neox("float32"), args=arguments(tmp_path), kinds=NAMES, grade="sketched", period_steps=2)
