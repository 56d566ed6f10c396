import json
import re

import numpy as np
import pytest
import torch

from quantascope import connect
from quantascope.api.report.ledger import strongest_flows
from quantascope.attribution.ledger import Evaluation, Ledger, SketchedLedger
from quantascope.errors import ConfigurationError, DamagedRunError, RunNotFoundError
from quantascope.jobs.ledger.keeping import write_ledger
from tests.attribution.ledger_oracle import KINDS, batches, losses_of, positions


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run with one ledger, and the ledger."""
    model = positions()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    held_out = Evaluation(batches=batches(2, seed=4), losses=losses_of)
    ledger = Ledger(model, optimiser, KINDS, evaluation=held_out, period_steps=2)
    for ids, labels in batches(6):
        with ledger.step(labels) as step:
            step.backward(losses_of(model, ids))
            optimiser.step()
        optimiser.zero_grad()
    ledger.close()
    path = tmp_path_factory.mktemp("ledger") / "run"
    write_ledger(path, ledger, facts={"seed": 1})
    return path, ledger


def test_the_balance_sheet_in_text_says_every_account_and_what_is_left(cli, kept):
    path, ledger = kept
    out, _ = cli("ledger", path)
    assert out.startswith("ledger main: 6 steps; the weights moved by ")
    shares = {
        name: float(share) for name, share in re.findall(r"^(\S+) +\S+ +(-?[\d.]+)% +-?[\d.]+$", out, re.MULTILINE)
    }
    assert list(shares) == [*KINDS, "rounding", "decay"]
    assert sum(shares.values()) == pytest.approx(100, abs=0.3)
    assert re.search(r"^residual +\de-1\d of the change's norm|^residual +[\d.]+e-1\d of the change", out, re.MULTILINE)
    assert "steps 0 to 6" in out
    matrix = out.partition("who lowered")[2].partition("strongest flows")[0]
    rows = re.findall(r"^(?:living/animal|living/plant|place) .*$", matrix, re.MULTILINE)
    sheet = ledger.loss_sheet()
    for row in rows:
        name, *numbers = row.split()
        place = sheet.kinds.index(name)
        expected = [*sheet.matrix[place], sheet.total[place], sheet.residual[place]]
        np.testing.assert_allclose([float(n) for n in numbers], 1000 * np.array(expected), atol=0.051)
    assert len(rows) == 3


def test_the_balance_sheet_in_json_rolls_up_and_looks_into_modules(cli, kept):
    path, ledger = kept
    value = json.loads(cli("ledger", path, "--depth", "1", "--json")[0])
    assert value["about"] == {"seed": 1}
    assert [row["account"] for row in value["weights"]["accounts"]] == ["living", "place", "rounding", "decay"]
    np.testing.assert_allclose(value["losses"]["matrix"], ledger.loss_sheet().roll_up(1).matrix, rtol=1e-12)
    inner = json.loads(cli("ledger", path, "--module", "inner", "--json")[0])
    assert inner["weights"]["change_norm"] < value["weights"]["change_norm"]
    sheet = ledger.loss_sheet()
    np.testing.assert_allclose(inner["losses"]["matrix"], sheet.changes[sheet.modules.index("inner")], rtol=1e-12)
    assert "residual: at most" not in cli("ledger", path, "--module", "inner")[0]


def test_the_client_reads_the_same_books(kept):
    path, ledger = kept
    found = connect(path).ledger()
    assert found.balance.accounts == ledger.balance().accounts
    with pytest.raises(RunNotFoundError, match="no ledger named 'other'"):
        connect(path).ledger("other")


def test_runs_without_such_a_ledger_and_damaged_ones_are_refused(cli, refused, kept, clustered_run, tmp_path):
    path, _ = kept
    assert "no ledger yet" in refused(RunNotFoundError, "ledger", clustered_run)
    assert "no ledger named 'other'; it has main" in refused(RunNotFoundError, "ledger", path, "--name", "other")
    assert "no module 'attention'; it has " in refused(RunNotFoundError, "ledger", path, "--module", "attention")
    table = path / "ledger" / "main" / "accounts.parquet"
    whole = table.read_bytes()
    table.write_bytes(whole[:-1])
    assert "accounts.parquet is damaged" in refused(DamagedRunError, "ledger", path)
    table.write_bytes(whole)
    cli("ledger", path)


def test_the_picture_of_the_flows_is_one_page_without_scripts_or_addresses(cli, refused, kept, tmp_path):
    path, ledger = kept
    out, _ = cli("ledger", path, "--html", tmp_path / "flow.html")
    sheet = ledger.loss_sheet()
    flows = strongest_flows(sheet, 10)
    assert len(flows) == 10
    assert all(account != kind for account, kind, _ in flows)
    account, kind, value = flows[0]
    away = [sheet.matrix[i, j] for i, k in enumerate(sheet.kinds) for j, a in enumerate(sheet.accounts) if a != k]
    assert abs(value) == np.abs(away).max()
    assert f"{account} {'helped' if value < 0 else 'hurt'} {kind}: {1000 * value:+.1f}" in out
    page = (tmp_path / "flow.html").read_text()
    assert page.count("<path ") == len(away)
    assert f"{account} → {kind}: {1000 * value:+.1f} thousandths" in page
    assert re.findall(r"<script|http|src=|url\(", page) == []
    assert "is not a folder" in refused(ConfigurationError, "ledger", path, "--html", tmp_path / "none" / "flow.html")


def test_names_are_escaped_in_the_page(cli, tmp_path):
    kinds = ["<b>x</b>", "a&b"]
    model = positions()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    evaluation = Evaluation(batches=batches(1, kinds=kinds), losses=losses_of)
    ledger = Ledger(model, optimiser, kinds, evaluation=evaluation, period_steps=1)
    for ids, labels in batches(2, kinds=kinds):
        with ledger.step(labels) as step:
            step.backward(losses_of(model, ids))
            optimiser.step()
        optimiser.zero_grad()
    ledger.close()
    write_ledger(tmp_path / "run", ledger, name="<i>")
    cli("ledger", tmp_path / "run", "--name", "<i>", "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<b>x" not in page
    assert "<i>" not in page
    assert "&lt;b&gt;x" in page


def test_documents_behind_an_entry_add_up_to_it(cli, refused, kept, tmp_path):
    model = positions()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    ledger = Ledger(model, optimiser, KINDS, keep_examples=True)
    for number, (ids, labels) in enumerate(batches(6)):
        with ledger.step(labels, ids=[f"text {(number + i) % 4}" for i in range(len(labels))]) as step:
            step.backward(losses_of(model, ids))
            optimiser.step()
        optimiser.zero_grad()
    ledger.close()
    write_ledger(tmp_path / "run", ledger)
    value = json.loads(cli("ledger", tmp_path / "run", "--documents", "99", "--json")[0])
    shares = {row["account"]: row["share"] for row in value["weights"]["accounts"]}
    for kind in KINDS:
        own = [d for d in value["documents"] if d["kind"] == kind]
        assert sum(d["share"] for d in own) == pytest.approx(shares[kind], abs=1e-12)
    assert {d["id"] for d in value["documents"]} == {f"text {i}" for i in range(4)}
    assert sum(d["num_examples"] for d in value["documents"]) == 30
    out, _ = cli("ledger", tmp_path / "run", "--documents", "1", "--kind", "living")
    largest = max((d for d in value["documents"] if d["kind"] != "place"), key=lambda d: abs(d["share"]))
    assert re.search(rf"^{largest['id']} +{largest['kind']} +{largest['share']:.3%} ", out, re.MULTILINE)
    assert "has no example of kind 'sea'" in refused(
        RunNotFoundError, "ledger", tmp_path / "run", "--documents", "1", "--kind", "sea"
    )
    assert "kept no examples" in refused(RunNotFoundError, "ledger", kept[0], "--documents", "3")


def test_a_sketched_ledger_says_that_it_is_one_and_what_it_assumes(cli, tmp_path):
    model = positions(torch.float32)
    optimiser = torch.optim.NAdam(model.parameters(), lr=0.01)
    ledger = SketchedLedger(model, optimiser, KINDS, refresh_steps=2)
    for ids, labels in batches(6):
        with ledger.step(labels) as step:
            step.backward(losses_of(model, ids))
            optimiser.step()
        optimiser.zero_grad()
    ledger.close()
    write_ledger(tmp_path / "run", ledger)
    out, _ = cli("ledger", tmp_path / "run", "--html", tmp_path / "page.html")
    assert "Sketched: seen through 16 random signs" in out
    assert "Assumed: the state of torch.optim.nadam.NAdam is not known: its steps are taken for AdamW's" in out
    assert "No step was held against the exact grade." in out
    assert "Without an account: convolution.bias, convolution.weight, gain" in out
    assert "over time" in (tmp_path / "page.html").read_text()


def test_a_sketched_ledger_says_how_far_its_sampled_steps_were_from_the_exact_grade(cli, tmp_path):
    model = positions(torch.float32)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    ledger = SketchedLedger(model, optimiser, KINDS, refresh_steps=2, audit_steps=2)
    for ids, labels in batches(6):
        with ledger.step(labels) as step:
            step.backward(losses_of(model, ids))
            optimiser.step()
        optimiser.zero_grad()
    ledger.close()
    write_ledger(tmp_path / "run", ledger)
    out, _ = cli("ledger", tmp_path / "run")
    found = re.search(r"exact grade on 3 sampled steps, one kind each: .* missed by ([\d.]+)%", out)
    assert float(found[1]) == pytest.approx(100 * ledger.grade["audit"]["residual"], abs=0.06)


def test_pairs_of_kinds_are_shown_with_what_they_miss(cli, tmp_path):
    model = positions()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    held_out = Evaluation(batches=batches(1, seed=4), losses=losses_of, interactions=True)
    ledger = Ledger(model, optimiser, KINDS, evaluation=held_out, period_steps=2)
    for ids, labels in batches(4):
        with ledger.step(labels) as step:
            step.backward(losses_of(model, ids))
            optimiser.step()
        optimiser.zero_grad()
    ledger.close()
    write_ledger(tmp_path / "run", ledger)
    out, _ = cli("ledger", tmp_path / "run")
    lines = out.partition("strongest interactions")[2].splitlines()[1:]
    assert len(lines) == 11
    pairs = ledger.interactions()
    value = json.loads(cli("ledger", tmp_path / "run", "--json")[0])["interactions"]
    np.testing.assert_array_equal(value["across"], pairs.across)
    names = lines[0].partition(":")[0].strip()
    size = float(re.search(r": ([+-][\d.]+), of", lines[0])[1])
    assert size == pytest.approx(1000 * np.abs(pairs.pairs).max() * np.sign(size), abs=0.051)
    assert any(names.endswith(f" on {kind}") for kind in pairs.kinds)
    assert "of a gradient's change" in lines[-1]
