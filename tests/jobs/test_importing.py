"""What bergson and TRAK wrote themselves (tests/data/foreign) becomes a run: rows, texts, statuses, and origin."""

import json
import random
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import yaml

from quantascope.errors import (
    ConfigurationError,
    DamagedRunError,
    DatasetNotFoundError,
    IncompleteRunError,
    ModelNotFoundError,
    QuantascopeError,
    RunMismatchError,
)
from quantascope.jobs.data.source import DataSource, Document
from quantascope.jobs.exchange.documents import GivenTokenizer, Words
from quantascope.jobs.exchange.importing import Import, import_store
from quantascope.jobs.exchange.stores import open_store
from quantascope.jobs.verify import verify
from quantascope.storage.run import Run
from tests.data.make_foreign_stores import SHORT, TEXTS, rows
from tests.tiny import SENTENCES, save_tiny, write_jsonl

FOREIGN = Path(__file__).parent.parent / "data" / "foreign"


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("data") / "texts.jsonl", rows(TEXTS))


@pytest.fixture
def job(texts, tmp_path):
    """Makes an import into a fresh run; keywords replace its parts."""

    def make(store="bergson", **parts):
        parts = {"data": DataSource(dataset=str(texts), label_fields=("kind",)), "out": str(tmp_path / "run")} | parts
        return Import(store=str(FOREIGN / store), **parts)

    return make


@pytest.fixture
def store_copy(tmp_path):
    def make(name):
        return Path(shutil.copytree(FOREIGN / name, tmp_path / name))

    return make


def raw_rows(name="bergson", dtype=np.float32):
    info = json.loads((FOREIGN / name / "info.json").read_text())
    return np.fromfile(FOREIGN / name / "gradients.bin", dtype).reshape(info["num_grads"], -1)


# --- bergson ---


def test_bergson_rows_are_stored_as_they_are_with_their_norms_and_texts(job, tiny_model_folder):
    done = import_store(job(tokenizer=str(tiny_model_folder)))
    assert (done.format, done.row_set, done.num_units, done.dim) == ("bergson", "document", len(TEXTS), 128)
    assert (done.zero, done.refused, done.unexplained_zeros) == (1, 0, 0)
    run = Run.open(job().out)
    row_set = run.row_set()
    units, given = row_set.units(), raw_rows()
    assert units["status"].to_pylist() == [2 if i == 2 else 1 for i in range(len(TEXTS))]
    np.testing.assert_allclose(units["norm"].to_numpy(), np.linalg.norm(given, axis=1), rtol=1e-6)
    kept, found = row_set.unit_rows()
    expected = given[kept] / np.linalg.norm(given[kept], axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=2**-11)  # float16 of numbers up to 1
    blocks = row_set.plan["blocks"]
    assert [b["name"] for b in blocks][:2] == ["layers.0.attention.query_key_value", "layers.0.attention.dense"]
    norms = row_set.block_norms()
    np.testing.assert_allclose(norms[:, 1], np.linalg.norm(given[:, 16:32], axis=1), rtol=1e-6)
    assert [d.text for d in run.documents] == TEXTS
    assert [d.labels["kind"] for d in run.documents] == [row["kind"] for row in rows(TEXTS)]
    assert verify(job().out).is_clean


def test_losses_and_settings_are_bergsons(job):
    import_store(job())
    row_set = Run.open(job().out).row_set()
    losses = row_set.units()["loss"].to_numpy()
    assert losses[2] == 0
    assert (np.delete(losses, 2) > 10).all()  # summed over tokens, as this store was built
    settings = row_set.plan["imported"]["settings"]
    assert (settings["projection_dim"], settings["loss_reduction"], settings["bergson_version"]) == (4, "sum", "2.5.1")
    assert row_set.plan["loss"] == "sum ce"
    assert set(row_set.plan["imported"]["files"]) == {"gradients.bin", "info.json", "processor_config.yaml"}


def test_bfloat16_is_read_as_the_numbers_it_stands_for(job):
    import_store(job("bergson-bfloat16"))
    norms = Run.open(job().out).row_set().units()["norm"].to_numpy()
    wide = (raw_rows("bergson-bfloat16", np.uint16).astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(norms, np.linalg.norm(wide, axis=1), rtol=1e-6)
    np.testing.assert_allclose(norms, np.linalg.norm(raw_rows(), axis=1), rtol=0.05)  # the same texts in less precision


def test_rows_of_single_positions_are_contributions(tmp_path, tiny_model_folder):
    data = DataSource(dataset=str(write_jsonl(tmp_path / "short.jsonl", rows(SHORT))))
    job = Import(
        store=str(FOREIGN / "bergson-tokens"), out=str(tmp_path / "run"), data=data, tokenizer=str(tiny_model_folder)
    )
    done = import_store(job)
    offsets = np.load(FOREIGN / "bergson-tokens/offsets.npy")
    assert (done.unit_type, done.num_units, done.num_documents) == ("token-contribution", offsets[-1], len(SHORT))
    run = Run.open(job.out)
    units = run.row_set().units().to_pylist()
    assert [u["document"] for u in units] == np.repeat(np.arange(len(SHORT)), np.diff(offsets)).tolist()
    oak = [SHORT[0][u["text_start"] : u["text_end"]] for u in units if u["document"] == 0]
    assert SHORT[0].startswith("".join(oak))  # all its tokens but the last, which predicts nothing
    with pytest.raises(ConfigurationError, match="--tokenizer"):
        import_store(Import(store=job.store, out=str(tmp_path / "other"), data=data))


def test_an_unfinished_or_cut_store_is_refused(store_copy, tmp_path):
    folder = store_copy("bergson")
    part = folder.rename(tmp_path / "bergson.part")
    with pytest.raises(IncompleteRunError, match="not finished building"):
        open_store(part)
    folder = part.rename(folder)
    content = (folder / "gradients.bin").read_bytes()
    (folder / "gradients.bin").write_bytes(content[:-4])
    with pytest.raises(DamagedRunError, match=r"8,700 bytes; 17 rows of 128 numbers are 8,704"):
        open_store(folder)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"num_grads": 16}, "8,704 bytes; 16 rows"),
        ({"num_grads": -1}, "lacks grad_sizes and num_grads"),
        ({"grad_sizes": {"a": "16"}}, "lacks grad_sizes"),
        ({"base_dtype": "object"}, "base_dtype is 'object'"),
        ({"attribute_tokens": True}, r"offsets\.npy"),
    ],
)
def test_an_info_that_does_not_fit_is_refused(store_copy, change, why):
    folder = store_copy("bergson")
    info = json.loads((folder / "info.json").read_text())
    (folder / "info.json").write_text(json.dumps(info | change))
    with pytest.raises(DamagedRunError, match=why):
        open_store(folder)


def test_an_aggregated_index_has_nothing_to_cluster(store_copy):
    folder = store_copy("bergson")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["steps"][0]["build"]["preprocess_cfg"]["aggregation"] = "mean"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigurationError, match="mean of all documents"):
        open_store(folder)


def test_yaml_with_objects_is_not_run(store_copy, tmp_path):
    folder, mark = store_copy("bergson"), tmp_path / "ran"
    (folder / "config.yaml").write_text(f"!!python/object/apply:os.mkdir [{str(mark)!r}]")
    with pytest.raises(DamagedRunError, match=r"config\.yaml"):
        open_store(folder)
    assert not mark.exists()


def test_arrays_of_objects_are_not_unpickled(tmp_path):
    np.save(tmp_path / "rows.npy", np.array([[{}]], object), allow_pickle=True)
    with pytest.raises(DamagedRunError, match=r"\.npy array"):
        open_store(tmp_path / "rows.npy")


# --- TRAK ---


def test_trak_gradients_become_documents_without_text(job):
    done = import_store(job("trak", data=None))
    assert (done.format, done.num_units, done.dim, done.has_text) == ("trak", len(TEXTS), 32, False)
    run = Run.open(job().out)
    given = np.load(FOREIGN / "trak/0/grads.mmap", allow_pickle=False).astype(np.float32)
    np.testing.assert_allclose(run.row_set().units()["norm"].to_numpy(), np.linalg.norm(given, axis=1), rtol=1e-6)
    settings = run.row_set().plan["imported"]["settings"]
    assert (settings["checkpoint"], settings["array"], settings["JL matrix type"]) == ("0", "grads", "rademacher")
    assert run.documents[5].text is None


def test_a_trak_checkpoint_is_named_where_there_are_several(job, store_copy):
    folder = store_copy("trak")
    shutil.copytree(folder / "0", folder / "3")
    with pytest.raises(DatasetNotFoundError, match=r"several checkpoints.*0, 3"):
        open_store(folder)
    assert open_store(folder, checkpoint="3").settings["checkpoint"] == "3"
    with pytest.raises(DatasetNotFoundError, match="no checkpoint '4'"):
        open_store(folder, checkpoint="4")
    with pytest.raises(ConfigurationError, match="TRAK stores"):
        import_store(job(checkpoint="0"))


def test_a_trak_store_that_is_not_featurized_is_refused(store_copy):
    folder = store_copy("trak")
    done = np.load(folder / "0/_is_featurized.mmap", mmap_mode="r+")
    done[4:7] = 0
    done.flush()
    with pytest.raises(IncompleteRunError, match="3 of the 17 examples"):
        open_store(folder)


def test_without_gradients_traks_features_are_taken_if_they_are_finished(store_copy):
    folder = store_copy("trak")
    (folder / "0/grads.mmap").unlink()
    assert "second moment" in open_store(folder).settings["quantity"]
    (folder / "id_0.json").write_text('{"0": {"is_featurized": 1, "is_finalized": 0}}')
    with pytest.raises(IncompleteRunError, match="finalize_features"):
        open_store(folder)


# --- arrays ---


def test_rows_of_an_array_have_statuses(tmp_path):
    given = np.random.default_rng(0).normal(size=(7, 5))
    given[1], given[2, 3], given[4, 0], given[5, 0] = 0, np.nan, np.inf, 1e300
    np.save(tmp_path / "rows.npy", given)
    done = import_store(Import(store=str(tmp_path / "rows.npy"), out=str(tmp_path / "run")))
    assert (done.format, done.zero, done.refused) == ("npy", 1, 3)
    row_set = Run.open(tmp_path / "run").row_set()
    assert row_set.units()["status"].to_pylist() == [1, 2, 3, 1, 3, 3, 1]
    assert np.isnan(row_set.block_norms()[:, 0]).tolist() == [False, False, True, False, True, True, False]


@pytest.mark.parametrize("array", [np.zeros(4), np.zeros((3, 0)), np.zeros((2, 2), int)])
def test_arrays_of_other_shapes_are_refused(tmp_path, array):
    np.save(tmp_path / "rows.npy", array)
    with pytest.raises(ConfigurationError, match="floats of shape"):
        open_store(tmp_path / "rows.npy")


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(DatasetNotFoundError, match="no gradient store at"):
        open_store(tmp_path / "nowhere")
    with pytest.raises(DatasetNotFoundError, match=r"gradients\.bin"):
        open_store(tmp_path)


def test_broken_stores_are_refused_with_a_reason_or_read(tmp_path):
    """Bytes changed, cut off or put in, in every file but the rows themselves: never another kind of error."""
    rng = random.Random(0)
    read = 0
    for number in range(120):
        folder = Path(
            shutil.copytree(FOREIGN / rng.choice(["bergson", "bergson-tokens", "trak"]), tmp_path / f"{number}")
        )
        files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "gradients.bin")
        path = rng.choice(files)
        content = bytearray(path.read_bytes())
        place = rng.randrange(len(content))
        change = rng.choice(["flip", "cut", "insert"])
        if change == "flip":
            content[place] = rng.randrange(256)
        else:
            content[place:] = b"" if change == "cut" else rng.randbytes(9) + content[place:]
        path.write_bytes(content)
        with suppress(QuantascopeError):
            open_store(folder).read(0, 3)
            read += 1
    assert 0 < read < 100


# --- texts ---


def test_another_data_set_is_refused(job, tmp_path, tiny_model_folder):
    fewer = DataSource(dataset=str(write_jsonl(tmp_path / "fewer.jsonl", rows(TEXTS[:-1]))))
    more = DataSource(dataset=str(write_jsonl(tmp_path / "more.jsonl", rows([*TEXTS, "one more"]))))
    other = DataSource(dataset=str(write_jsonl(tmp_path / "other.jsonl", rows([*TEXTS[:-1], "not that text"]))))
    for number, (data, why) in enumerate(((fewer, "16 of the 17"), (more, "more than the 17"))):
        with pytest.raises(RunMismatchError, match=why):
            import_store(job(data=data, out=str(tmp_path / f"run{number}")))
    with pytest.raises(RunMismatchError, match=r"Row 16 of other\.jsonl has \d+ tokens .* says \d+"):
        import_store(job(data=other, out=str(tmp_path / "third"), tokenizer=str(tiny_model_folder)))


def test_rows_without_text_keep_their_places(job, tmp_path):
    broken = [*rows(TEXTS[:2]), {"text": None, "kind": "k"}, *rows(TEXTS[3:-1]), {"text": " ", "kind": "k"}]
    data = DataSource(dataset=str(write_jsonl(tmp_path / "broken.jsonl", broken)), label_fields=("kind",))
    import_store(job(data=data))
    run = Run.open(job().out)
    assert [d.text for d in run.documents] == [*TEXTS[:2], "", *TEXTS[3:-1], ""]
    assert [s["row"] for s in run.documents.index["skipped"]] == [2, 16]


def test_words_cover_the_text_and_are_found_again():
    from tokenizers import Tokenizer

    words = Words()
    for row, text in enumerate(SENTENCES):
        document = Document(row=row, user_id="", text=text, labels={}, completion=None, source="")
        tokens = words.tokenise(document)
        assert "".join(text[a:b] for a, b in zip(tokens.starts, tokens.ends, strict=True)) == text
        again = Tokenizer.from_str(words.serialise()).encode(text)
        assert again.ids == tokens.ids.tolist()
        assert again.offsets == list(zip(tokens.starts.tolist(), tokens.ends.tolist(), strict=True))


def test_a_tokenizer_that_is_not_there(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"tokenizer\.json"):
        GivenTokenizer(tmp_path)


# --- the run ---


def test_an_import_that_was_stopped_goes_on(job, monkeypatch):
    monkeypatch.setattr("quantascope.jobs.exchange.importing._CHUNK_BYTES", 2 * 128 * 8)  # eight rows to a block
    from quantascope.storage.rowset import RowSet

    commit, calls = RowSet.commit, []

    def dying(self, block, content):
        calls.append(block)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return commit(self, block, content)

    monkeypatch.setattr(RowSet, "commit", dying)
    with pytest.raises(KeyboardInterrupt):
        import_store(job())
    done = import_store(job())
    assert (done.rows_here, calls) == (9, [0, 1, 1, 2])
    assert import_store(job()).rows_here == 0


def test_another_store_is_not_mixed_in(job, store_copy):
    import_store(job())
    with pytest.raises(RunMismatchError, match=r"gradients\.bin"):
        import_store(job("bergson-bfloat16"))


def test_imported_rows_are_clustered_reported_and_not_traced(cli, refused, texts, tmp_path):
    run = tmp_path / "run"
    out, _ = cli("import", FOREIGN / "bergson", "--out", run, "--dataset", texts, "--label", "kind")
    assert "17 rows of 128 numbers" in out
    assert "0 refused, 1 zero; 17 documents; 17 rows imported now" in out
    assert "16 units" in cli("cluster", run, "--num-quanta", "4")[0]
    cli("report", run, "--out", tmp_path / "report.html")
    assert "bergson" in cli("info", run)[0]
    assert "imported from a bergson store" in refused(RunMismatchError, "trace", run, "When John", " and")
    checkpoints = [str(save_tiny(tmp_path / f"checkpoint-{step}")) for step in range(4)]
    flags = [word for place in checkpoints for word in ("--checkpoints", place)]
    assert "imported from a bergson store" in refused(RunMismatchError, "emerge", run, *flags)


def test_collecting_into_an_imported_run_is_refused(job, refused, collect_flags):
    import_store(job())
    assert "another configuration" in refused(RunMismatchError, *collect_flags, "--out", job().out, "--name", "own")


def test_damaged_imported_rows_are_left_with_the_command_that_mends_them(job, cli):
    import_store(job())
    path = Path(job().out) / "rows/document/gradients/c/0/0"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    out, _ = cli("repair", job().out, status=DamagedRunError.exit_status)
    assert "quantascope rm RUN --rows document` and import again" in out
    cli("rm", job().out, "--rows", "document", "--yes")
    assert import_store(job()).rows_here == 17
    assert verify(job().out).is_clean
