import json
import shutil
from dataclasses import asdict

import numpy as np
import pytest
from transformers import AutoTokenizer

from quantascope import connect
from quantascope.errors import ConfigurationError, ModelNotFoundError, RunMismatchError, RunNotFoundError
from tests.command_line import run_main
from tests.tiny import SENTENCES, save_tiny

TEXTS = [sentence * 3 for sentence in SENTENCES]


@pytest.fixture(scope="module")
def client(clustered_run):
    return connect(clustered_run)


@pytest.fixture(scope="module")
def bare(bare_run):
    return connect(bare_run)


@pytest.fixture(scope="module")
def seen(client, tiny_model_folder):
    """A training unit whose context is its document's beginning, cut where the tokenizer would cut it too."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    for unit in client.units():
        prompt = TEXTS[unit.document][: unit.text_start]
        ids = tokenizer(prompt + unit.target)["input_ids"]
        if unit.first_token == 0 and unit.last_token > 8 and len(ids) == unit.last_token + 1:
            return unit, prompt
    raise AssertionError("no unit begins where its document does")


@pytest.fixture(scope="module")
def trace(client, seen):
    unit, prompt = seen
    return client.trace(prompt, unit.target, k=12)


def test_quanta_are_what_is_stored_the_most_used_first(client):
    quanta = client.quanta()
    stored = client.run.derived("quanta", "main").table("quanta").to_pylist()
    assert [(q.id, q.label, q.target, q.size) for q in quanta] == [
        (row["quantum"], row["phrase"], row["target"], row["size"]) for row in stored
    ]
    sizes = [q.size for q in quanta]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == 200
    assert [q.use for q in quanta] == pytest.approx([size / 200 for size in sizes])
    assert client.quantum(3) == quanta[3]
    for q in quanta:
        assert all(0 <= near < len(quanta) and near != q.id for near, _ in q.nearest)
        assert list(q.nearest) == sorted(q.nearest, key=lambda pair: -pair[1])
    for missing in (-1, len(quanta)):
        with pytest.raises(RunNotFoundError, match=f"0 to {len(quanta) - 1}"):
            client.quantum(missing)


def test_units_of_a_quantum_are_its_own_the_nearest_first(client):
    stored = client.run.derived("quanta", "main").table("units").to_pylist()
    cosine = {row["unit"]: row["cosine"] for row in stored}
    home = {row["unit"]: row["quantum"] for row in stored}
    assert [unit.unit for unit in client.units()] == list(range(200))
    for q in client.quanta():
        units = list(client.units(quantum=q.id))
        assert {u.unit for u in units} == {unit for unit, quantum in home.items() if quantum == q.id}
        assert [u.score for u in units] == sorted((cosine[u.unit] for u in units), reverse=True)
        assert set(q.exemplars) <= {u.unit for u in units}
        assert not set(q.counterexamples) & {u.unit for u in units}
        assert q.mean_loss == pytest.approx(np.mean([u.loss for u in units]), rel=1e-5)
        assert q.num_documents == len({u.document for u in units})
    with pytest.raises(RunNotFoundError):
        list(client.units(quantum=10_000))


def test_a_units_words_are_its_documents(client):
    parts = 0
    for unit in client.units():
        text = TEXTS[unit.document]
        assert text[unit.text_start : unit.text_end] == unit.target
        assert unit.labels == {"kind": f"k{unit.document % 2}"}
        assert unit.user_id == str(unit.document)
        if text[: unit.text_start].endswith(unit.context):
            continue
        parts += 1  # a token that is part of a character: the character's first token shows it whole
        assert text[: unit.text_end].endswith(unit.context)
        assert len(unit.target.encode()) > 1
    assert parts < 20


def test_tracing_a_training_context_finds_that_unit_first(trace, seen):
    unit, prompt = seen
    assert trace.units[0].unit == unit.unit
    assert trace.units[0].score == pytest.approx(1, abs=2e-3)  # rows and index are float16
    assert trace.loss == pytest.approx(unit.loss, rel=1e-4)
    assert (trace.prompt, trace.completion) == (prompt, unit.target)
    assert "".join(trace.prompt_tokens) == prompt
    assert trace.quanta[0].quantum == unit.quantum
    assert trace.lexical[0].unit == unit.unit


def test_a_traces_figures_are_what_they_say(trace):
    assert len(trace.contributions) == len(trace.prompt_tokens) + len(trace.completion_tokens)
    assert sum(trace.contributions) == pytest.approx(1, abs=1e-6)
    up = [unit.score for unit in trace.units]
    down = [unit.score for unit in trace.opposing]
    assert len(up) == len(down) == 12
    assert up == sorted(up, reverse=True)
    assert down == sorted(down)
    assert max(down) < 0 < min(up)
    assert all(q.weight > 0 for q in trace.quanta)
    assert all(q.low <= q.weight <= q.high for q in trace.quanta)
    assert 0 <= trace.novelty <= 1
    assert trace.windows == ()


def test_what_was_never_seen_is_more_novel(client, trace):
    strange = client.trace("zq" * 20, "#", k=3)
    assert strange.novelty > trace.novelty
    assert strange.units[0].score < 0.9


def test_saved_traces_come_back_until_the_quanta_change(run_copy, seen):
    unit, prompt = seen
    client = connect(run_copy)
    found = client.trace(prompt, unit.target, k=2)
    client.save_trace("a / b", found)
    client.save_trace("a / b", found)
    client.save_trace("../../out", found)
    assert connect(run_copy).traces() == [
        (title, json.loads(json.dumps(asdict(found)))) for title in ("a / b", "../../out")
    ]
    assert sorted(p.name for p in run_copy.parent.iterdir()) == ["run"]
    assert run_main("cluster", run_copy, "--num-quanta", "5") == 0
    assert connect(run_copy).traces() == []


def test_the_checkpoint_may_have_moved_but_must_be_the_same(run_copy, tmp_path, seen, tiny_model_folder):
    unit, prompt = seen
    client = connect(run_copy)
    client.use_model(str(shutil.copytree(tiny_model_folder, tmp_path / "moved")))
    assert client.trace(prompt, unit.target, k=1).units[0].unit == unit.unit
    client.use_model(str(save_tiny(tmp_path / "other", seed=1)))
    with pytest.raises(RunMismatchError, match="--model"):
        client.trace(prompt, unit.target)
    client.use_model(str(tmp_path / "gone"))
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        client.trace(prompt, unit.target)


def test_info_agrees_with_the_run(client):
    info = client.info()
    rows = client.run.row_set()
    assert (info["documents"], info["tokens"], info["skipped_rows"]) == (8, client.run.documents.lengths().sum(), 0)
    assert info["row_sets"]["token-loss"]["units"] == len(rows)
    assert info["row_sets"]["token-loss"]["model_fingerprint"] == rows.plan["model"]["fingerprint"]
    assert info["quanta"] == ["main"]


def test_a_client_asks_the_quanta_that_it_was_told(run_copy):
    assert run_main("cluster", run_copy, "--name", "five", "--num-quanta", "5") == 0
    assert len(connect(run_copy, quanta="five").quanta()) == 5
    assert len(connect(run_copy).quanta()) != 5
    with pytest.raises(RunNotFoundError, match="five, main"):
        connect(run_copy, quanta="six").quanta()


def test_without_text_the_words_come_from_the_tokenizer(client, bare, bare_run):
    assert all(document.text is None for document in bare.run.documents)
    assert not any(b"When John" in p.read_bytes() for p in bare_run.rglob("*") if p.suffix in (".json", ".parquet"))
    plain = [n for n, text in enumerate(TEXTS) if text.isascii()]
    pairs = list(zip(client.units(), bare.units(), strict=True))
    assert len(plain) >= 5
    for whole, without in pairs:
        assert (whole.unit, whole.document, whole.text_start) == (without.unit, without.document, without.text_start)
        if whole.document in plain:
            assert (whole.context, whole.target) == (without.context, without.target)
        else:
            assert without.target
    assert [q.label for q in bare.quanta() if q.label.isascii()]


def test_windows_are_traced_beside_tokens(bare, seen):
    unit, prompt = seen
    found = bare.trace(prompt, unit.target, k=4)
    assert found.units[0].unit == unit.unit
    assert len(found.windows) == 4
    scores = [window.score for window in found.windows]
    assert scores == sorted(scores, reverse=True)
    window = found.windows[0]
    assert (window.quantum, window.context) == (None, "")
    if TEXTS[window.document].isascii():
        assert TEXTS[window.document][window.text_start : window.text_end] == window.target


def test_reports_of_runs_with_and_without_text(client, bare, tmp_path):
    for name, asked in (("whole", client), ("bare", bare)):
        page = asked.report(tmp_path / f"{name}.html").read_text()
        assert page.lstrip().lower().startswith("<!doctype html>")
        assert page.count("</html>") == 1
    with pytest.raises(ConfigurationError, match="not a folder"):
        client.report(tmp_path / "no/report.html")


def test_what_is_no_folder_is_refused_at_once(tmp_path):
    for url in ("http://localhost:8080", "https://example.org"):
        with pytest.raises(ConfigurationError, match="no HTTP service yet"):
            connect(url)
    with pytest.raises(RunNotFoundError, match="holds no run"):
        connect(tmp_path)
