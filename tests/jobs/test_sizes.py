import json
import re
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from quantascope.errors import ConfigurationError, RunMismatchError, RunNotFoundError
from quantascope.jobs.change.emerge import place_of, read_emergence
from quantascope.jobs.change.losses import LossWorker
from quantascope.jobs.models.model import ModelSource, check_model
from quantascope.jobs.quanta.cluster import Quanta
from quantascope.storage.run import Run
from quantascope.storage.stale import stale_parts
from tests.here import Actor, Pool
from tests.tiny import save_tiny, tiny_neox, tiny_tokenizer

SHAPES = {"huge": (24, 2, 0.5), "own": (16, 2, 1), "small": (8, 2, 40), "tiny": (8, 1, 80)}
"""Width, layers and a factor on the logits, which makes small models bad, by name: falling sizes in rising order."""


@pytest.fixture(scope="module")
def suite(tmp_path_factory, tiny_model_folder):
    """Models of four sizes, one of them the run's own, and a folder that is none."""
    folder = tmp_path_factory.mktemp("suite")
    for name, (width, layers, factor) in SHAPES.items():
        if name == "own":
            shutil.copytree(tiny_model_folder, folder / name)
            continue
        model = tiny_neox(width=width, layers=layers, seed=1)
        model.get_output_embeddings().weight.data *= factor
        model.save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    (folder / "logs").mkdir()
    (folder / "logs" / "config.json").write_text("{}")
    return folder


@pytest.fixture
def loaded(monkeypatch):
    """Which models' losses were computed, in this process and not in Ray's."""
    found = []
    monkeypatch.setitem(__import__("sys").modules, "ray", SimpleNamespace(remote=Actor))
    monkeypatch.setattr("quantascope.jobs.change.losses.WorkerPool", Pool)
    monkeypatch.setattr("quantascope.jobs.change.losses.ray_session", lambda _: nullcontext(1))
    losses = LossWorker.losses

    def counted(self, model):
        found.append(model.source.model)
        return losses(self, model)

    monkeypatch.setattr(LossWorker, "losses", counted)
    return found


@pytest.fixture
def over_sizes(cli, run_copy):
    """The command on the copied run: takes further arguments, gives what it prints."""
    return lambda *arguments: cli("emerge", run_copy, "--over", "sizes", "--resamples", "20", *arguments)[0]


def test_the_mean_loss_is_the_sum_of_the_quantas_contributions_at_each_size(loaded, over_sizes, run_copy, suite):
    out = over_sizes("--checkpoints", suite, "--limit", "100")
    run = Run.open(run_copy)
    quanta, found = Quanta(run), read_emergence(run, over="sizes")
    names = [model.rsplit("/", 1)[1] for model in found.facts["models"]]
    assert names == ["tiny", "small", "own", "huge"]
    sizes = [check_model(ModelSource(model=m)).num_parameters for m in found.facts["models"]]
    assert found.facts["num_parameters"] == sizes == sorted(sizes)
    assert out.startswith(f"{len(quanta.table)} quanta over 4 models, {sizes[0]:,} to {sizes[-1]:,} parameters: ")

    units = quanta.units.to_pandas()
    curves = found.curves.to_pandas()
    sums = curves.groupby("num_parameters")["contribution"].sum()
    np.testing.assert_allclose(sums, found.facts["mean_loss"], rtol=1e-6)
    own = curves[curves["num_parameters"] == sizes[2]].set_index("quantum")
    expected = units.groupby("quantum")["loss"]
    np.testing.assert_allclose(own["loss"], expected.mean(), rtol=1e-4)
    np.testing.assert_allclose(own["contribution"], expected.sum() / len(units), rtol=1e-4)
    assert found.facts["mean_loss"][2] == pytest.approx(units["loss"].mean(), rel=1e-4)

    whole = found.facts["mean_loss"][0] - found.facts["mean_loss"][-1]
    assert sum(found.quanta["fall"].to_pylist()) == pytest.approx(whole, abs=1e-9)
    slope = np.polyfit(np.log(sizes), np.log(found.facts["mean_loss"]), 1)[0]
    assert found.facts["scaling"]["exponent"] == pytest.approx(-slope)
    assert found.facts["monogenic"]["sentence"] in out
    parts = [float(part) for part in re.findall(r" (-?[\d.]+)%", out[out.index("of fall") :])]
    assert len(parts) == sum(status != "flat" for status in found.quanta["status"].to_pylist()) > 10
    first = int(re.search(r"of fall\n +(\d+) ", out)[1])
    assert parts[0] == pytest.approx(100 * found.quanta["fall"][first].as_py() / whole, abs=0.05)
    assert "frequency ∝ rank^" in out
    assert "no law of all text" in out
    assert stale_parts(run) == []


def test_losses_are_computed_once_for_the_same_models(loaded, over_sizes, run_copy, suite):
    flags = [flag for name in SHAPES for flag in ("--checkpoints", suite / name)]
    over_sizes(*flags)
    assert len(loaded) == 4
    value = json.loads(over_sizes(*flags, "--seed", "1", "--json"))
    assert len(loaded) == 4
    assert value["facts"]["scaling"]["exponent_low"] <= value["facts"]["scaling"]["exponent"]
    wider = save_tiny(run_copy.parent / "wider", width=40)
    over_sizes(*flags, "--checkpoints", wider)
    assert len(loaded) == 9


def test_what_was_found_over_steps_stays(loaded, over_sizes, run_copy, suite):
    run = Run.open(run_copy)
    run.derived("emergence", "main").write(
        {"steps": [1, 2], "config": {"quanta": "main"}}, source=Quanta(run).fingerprint()
    )
    before = {p: p.read_bytes() for p in (run_copy / "emergence/main").iterdir()}
    over_sizes("--checkpoints", suite)
    assert {p: p.read_bytes() for p in (run_copy / "emergence/main").iterdir()} == before
    assert sorted(run.derived_names("emergence")) == ["main", "main-sizes"]
    assert not run.derived_names("curves")


def test_what_is_no_series_of_sizes_is_refused_before_any_loss_is_computed(loaded, refused, run_copy, suite, tmp_path):
    def message(error, *arguments):
        return refused(error, "emerge", run_copy, "--over", "sizes", *arguments)

    each = {name: ("--checkpoints", suite / name) for name in SHAPES}
    assert "series of 3 models" in message(ConfigurationError, *each["huge"], *each["small"], *each["own"])
    same = save_tiny(tmp_path / "same", width=24)
    found = message(ConfigurationError, "--checkpoints", suite, "--checkpoints", same)
    assert re.search(r"(huge and .*same|same and .*huge) both have [\d,]+ parameters", found)
    foreign = save_tiny(tmp_path / "foreign", width=48)
    tiny_tokenizer(vocab_size=300).save_pretrained(foreign)
    found = message(RunMismatchError, "--checkpoints", suite, "--checkpoints", foreign)
    assert "foreign has another tokenizer than the run" in found
    short = save_tiny(tmp_path / "short", width=48, context=16)
    assert "reads 16 tokens, the run's windows have 32" in message(
        RunMismatchError, "--checkpoints", suite, "--checkpoints", short
    )
    assert "units-per-quantum is 8" in message(ConfigurationError, "--checkpoints", suite, "--units-per-quantum", "8")
    (tmp_path / "none").mkdir()
    assert "holds no models" in message(RunNotFoundError, "--checkpoints", suite, "--checkpoints", tmp_path / "none")
    assert "accepted are steps, sizes" in refused(
        ConfigurationError, "emerge", run_copy, "--checkpoints", suite, "--over", "widths"
    )
    assert loaded == []
    assert not Run.open(run_copy).derived_names("emergence")


def test_a_series_of_steps_with_models_of_different_sizes_is_told_of_sizes(loaded, refused, run_copy, suite, tmp_path):
    assert "--over sizes" in refused(RunNotFoundError, "emerge", run_copy, "--checkpoints", suite)
    for number, name in enumerate(SHAPES):
        shutil.copytree(suite / name, tmp_path / f"checkpoint-{number}")
    assert "--over sizes takes models" in refused(RunMismatchError, "emerge", run_copy, "--checkpoints", tmp_path)


def test_quanta_named_like_the_place_of_others_do_not_overwrite_it(loaded, over_sizes, run_copy, suite):
    over_sizes("--checkpoints", suite)
    run = Run.open(run_copy)
    assert place_of(run, "main", "sizes").folder == "emergence/main-sizes"
    with pytest.raises(ConfigurationError, match="holds the emergence of the quanta 'main', not of 'main-sizes'"):
        place_of(run, "main-sizes")
