"""The planted data of the benchmarks: it must be what it says, or the benchmarks prove nothing."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def planted(monkeypatch):
    """The benchmarks' folder can be imported from, as when one of them runs."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def language(planted):
    from planted import language as module

    return module


@pytest.fixture
def parity(planted):
    from planted import parity as module

    return module


@pytest.fixture
def scaling(planted):
    from planted import parity_scaling as module

    return module


def test_there_are_enough_skills_and_they_share_their_answers(language):
    assert len(language.SKILLS) >= 40
    drawn = language.Language.draw(0)
    text = drawn.text(2_000, 64, 1)
    ids, skills = text.ids.numpy(), text.skills
    answered = np.zeros((len(language.SKILLS), len(language.VOCABULARY)), dtype=bool)
    answered[skills[skills >= 0], ids[skills >= 0]] = True
    assert answered.any(axis=1).all(), "a skill was never drawn"
    sharing = (answered & (answered.sum(axis=0) > 1)).any(axis=1)
    assert sharing.mean() >= 0.5
    for whole, parts in language.COMPOSITIONS.items():
        assert whole in language.SKILLS
        assert set(parts) <= set(language.SKILLS)


def test_skills_follow_zipfs_law(language):
    frequencies = np.sort(language.Language.draw(3).frequencies)[::-1]
    np.testing.assert_allclose(frequencies * np.arange(1, len(frequencies) + 1), frequencies[0])
    assert frequencies.sum() == pytest.approx(1)


def test_answers_are_right(language):
    """Where the answer follows from the sentence alone, it is worked out again."""
    rng, world = np.random.default_rng(0), language.World.draw(np.random.default_rng(1))
    for _ in range(200):
        given, answer = language.SKILLS["sum"](rng, world)
        assert int(answer) == sum(int(w) for w in given.split() if w.isdigit()) % 10
        given, answer = language.SKILLS["reversing"](rng, world)
        letters = [w for w in given.split() if w in language.LETTERS]
        assert answer.split() == letters[::-1]
        given, answer = language.SKILLS["closing brackets in brackets"](rng, world)
        opened = [language.OPENING.index(w) for w in given.split() if w in language.OPENING]
        assert [language.CLOSING.index(w) for w in answer.split()] == opened[::-1]
        given, answer = language.SKILLS["odd one out"](rng, world)
        letters = [w for w in given.split() if w in language.LETTERS]
        assert letters.count(answer) == 1
        given, answer = language.SKILLS["month after a birthday"](rng, world)
        (name,) = [w for w in given.split() if w in language.NAMES]
        assert language.MONTHS.index(answer) == (world.birth[name] + 1) % 12


def test_the_same_seed_gives_the_same_text(language):
    first, again = (language.Language.draw(2).text(20, 64, 5) for _ in range(2))
    other = language.Language.draw(2).text(20, 64, 6)
    assert torch.equal(first.ids, again.ids)
    assert np.array_equal(first.skills, again.skills)
    assert not torch.equal(first.ids, other.ids)


def test_labels_are_the_parity_of_the_tasks_own_bits(parity):
    problem = parity.ParityProblem.draw(0, parity.ParityConfig())
    examples = problem.sample(500, torch.Generator().manual_seed(0))
    inputs, tasks = examples.inputs.numpy().astype(int), examples.tasks.numpy()
    assert (inputs[:, :8].argmax(axis=1) == tasks).all()
    assert (inputs[:, :8].sum(axis=1) == 1).all()
    for row, task, label, pattern in zip(inputs, tasks, examples.labels, examples.patterns, strict=True):
        own = row[8 + problem.subsets[task]]
        assert int(label) == own.sum() % 2
        assert int(pattern) == own[0] + 2 * own[1] + 4 * own[2]
    assert len({tuple(s) for s in problem.subsets.tolist()}) == 8
    ratios = problem.frequencies[0] / problem.frequencies
    np.testing.assert_allclose(ratios, np.arange(1, 9) ** 1.2)


def test_a_network_learns_the_commonest_task_first(parity):
    small = {"num_tasks": 3, "num_bits": 8, "width": 64, "num_steps": 400, "batch_size": 250, "learning_rate": 1e-2}
    config = parity.ParityConfig(exponent=2.2, num_checkpoints=11, **small)
    state = torch.random.get_rng_state()
    run, again = (parity.train_parity(1, config) for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    np.testing.assert_array_equal(run.losses, again.losses)
    assert run.losses.shape == (11, 3)
    assert run.steps.tolist() == list(range(0, 401, 40))
    assert run.losses[0] == pytest.approx(np.log(2), abs=0.1)
    assert run.losses[-1, 0] < 0.05
    first = [(run.losses[:, task] < 0.35).argmax() if run.losses[-1, task] < 0.35 else 99 for task in range(3)]
    assert first[0] < first[2]


def test_networks_side_by_side_do_not_meet(scaling, parity):
    config = parity.ParityConfig(num_tasks=5, num_bits=6)
    examples = parity.ParityProblem.draw(0, config).sample(40, torch.Generator().manual_seed(0))
    widths = (3, 7)
    model = scaling.SideBySide(5, 6, widths, torch.Generator().manual_seed(1))
    logits = model(examples)
    torch.nn.functional.cross_entropy(logits[:, 0], examples.labels).backward()
    start = 0
    for network, width in enumerate(widths):
        own = slice(start, start + width)
        first = torch.cat([model.control, model.first])[:, own]
        hidden = torch.relu(examples.inputs @ first + model.first_bias[own])
        torch.testing.assert_close(logits[:, network], hidden @ model.second[own] + model.second_bias[network])
        for weight in (model.control.grad[:, own], model.first.grad[:, own], model.second.grad[own]):
            assert weight.any() == (network == 0)
        start += width


def test_losses_of_a_fixed_training_set_stop_after_their_least(scaling, parity):
    small = {"num_tasks": 3, "num_bits": 8, "num_steps": 3_000, "batch_size": 100, "learning_rate": 1e-2}
    config = parity.ParityConfig(exponent=1.4, num_checkpoints=60, samples_per_task=64, **small)
    found, again = (scaling.fall(0, config, (32,), num_training_examples=60) for _ in range(2))
    np.testing.assert_array_equal(found.losses, again.losses)
    assert found.steps[-1] < 3_000  # sixty examples are soon known by heart
    assert (found.means[-8:] > 1.05 * found.means.min()).all()
    assert found.parameters.tolist() == [32 * (3 + 8 + 3) + 2]


def test_the_exponent_of_a_power_law_is_found(scaling):
    scales = np.geomspace(10, 1_000, 9)
    value, count = scaling.exponent(scales, np.maximum(3 * scales**-0.4, 0))
    assert value == pytest.approx(0.4)
    assert count == (3 * scales**-0.4 < 0.9 * np.log(2)).sum()
    assert np.isnan(scaling.exponent(scales, np.full(9, 0.7))[0])


def test_frequent_tasks_first_is_a_correlation_of_minus_one(scaling):
    frequencies = np.arange(1, 13, dtype=float)[::-1] ** 2
    steps = np.append(np.arange(11) * 10.0, np.inf)
    correlation, null, count = scaling.order(steps, frequencies, 0)
    assert (correlation, count) == (pytest.approx(-1), 11)
    assert -0.9 < null < -0.5
    assert np.isnan(scaling.order(np.full(12, np.inf), frequencies, 0)[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sparse_parity", "planted_language", "learned_together"])
def test_quick_runs_answer(name, tmp_path):
    """Bars may fall short in a minute's work; a table, bars and an exit status there must be."""
    cache = [] if name == "sparse_parity" else ["--cache", str(tmp_path / "cache")]
    command = [
        sys.executable,
        str(BENCHMARKS / f"{name}.py"),
        "--quick",
        "--json",
        str(tmp_path / "found.json"),
        *cache,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=230)
    found = json.loads((tmp_path / "found.json").read_text())
    assert done.returncode == (0 if all(bar["holds"] for bar in found["bars"]) else 1), done.stderr
    assert found["bars"]
    assert found["results"]
