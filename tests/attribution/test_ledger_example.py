"""The example on a data set of its own, and its measures on matrices whose answers are known."""

import csv
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "plants_and_animals.py"


@pytest.fixture
def example(monkeypatch):
    """Runs the example with these arguments; returns its names."""

    def call(*arguments, run=True):
        monkeypatch.setattr(sys, "argv", [EXAMPLE.name, *map(str, arguments)])
        return runpy.run_path(str(EXAMPLE), run_name="__main__" if run else "example")

    return call


def test_it_trains_compares_and_keeps_the_ledger(example, tmp_path, capsys):
    with (tmp_path / "kinds.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["kind", "text"])
        for number in range(10):
            writer.writerow(["plant", f"The oak number {number} is a tree with {number} leaves."])
            writer.writerow(["animal", f"The owl number {number} is a bird that has {number} eggs."])
            writer.writerow(["village", f"Place {number} lies on the river and has {number} mills."])
    arguments = (
        *("--data", tmp_path / "kinds.csv", "--steps", 4, "--seeds", 2, "--held-out", 2, "--vocab", 300, "--quanta"),
        *("--run", tmp_path / "run", "--json", tmp_path / "out.json", "--html", tmp_path / "flows.html"),
        *("--cache", tmp_path / "cache"),
    )
    example(*arguments)
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["kinds"] == ["animal", "plant", "village"]
    assert np.array(found["accounts"]).shape == np.array(found["retraining"]).shape == (2, 3, 3)
    assert (np.diag(found["accounts"][0]) < 0).all()
    assert (np.diag(found["retraining"][0]) < 0).all()
    assert found["figures"]["weight residual"] < 1e-5
    assert (tmp_path / "run" / "ledger" / "main" / "accounts.parquet").is_file()
    assert found["figures"]["sum over quanta less sum over kinds"] < 1e-4
    assert (tmp_path / "flows.html").read_text().startswith("<!doctype html>")
    shown = capsys.readouterr().out
    assert "trained without plant" in shown
    example(*arguments)  # goes on from the cache: nothing is trained again, and the figures are the same
    again = capsys.readouterr().out
    assert "two retraining seeds, centred" in again
    assert "trained without" not in again
    assert json.loads((tmp_path / "out.json").read_text())["figures"] == found["figures"]


def test_it_says_that_it_is_skipped_without_data(example, tmp_path, capsys):
    example("--data", tmp_path / "nothing.csv")
    assert capsys.readouterr().out.startswith("skipped: there is no ")


def test_its_measures(example):
    names = example(run=False)
    chance = np.random.default_rng(0)
    first = chance.normal(size=(6, 6))
    shifted = first + chance.normal(size=(6, 1)) + chance.normal(size=(1, 6)) + np.diag(chance.normal(size=6) * 9)
    assert names["spearman"](first, np.exp(first)) == pytest.approx(1)
    assert names["spearman"](first, shifted) < 0.99
    assert names["spearman"](first, shifted, centred=True) == pytest.approx(1)
    assert names["disattenuated"](0.6, [(0.5, 2), (0.6, 1)]) == pytest.approx(0.6 / (2 / 3 * 0.6) ** 0.5)
    assert names["helpers"](np.array([[-9.0, -1, 0], [2, -9, -3], [1, 0, -9]]), ["a", "b", "c"]) == {
        "a": "b",
        "b": "c",
        "c": "b",
    }
