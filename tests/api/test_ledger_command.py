import json
import re

import numpy as np
import pytest
import torch

from quantascope.attribution.ledger import Evaluation, Ledger
from quantascope.errors import DamagedRunError, RunNotFoundError
from quantascope.jobs.ledger import write_ledger
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
    rows = re.findall(r"^(?:living/animal|living/plant|place) .*$", out.partition("who lowered")[2], re.MULTILINE)
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
