"""What the command line refuses: each with its own exit status, one message, and nothing changed."""

import errno
import json
import os
import re
import subprocess
from types import SimpleNamespace

import pytest

from quantascope import errors
from quantascope.errors import (
    BadRowError,
    BadWeightsError,
    ConfigurationError,
    DatasetNotFoundError,
    EncodingError,
    MissingFieldError,
    ModelNotFoundError,
    NoSpaceError,
    QuantascopeError,
    QueryTooLongError,
    RayStartError,
    RemoteCodeError,
    RunBusyError,
    RunMismatchError,
    RunNotFoundError,
)
from tests.command_line import contents
from tests.tiny import save_tiny, tiny_neox, tiny_tokenizer, write_jsonl

OWN_CODE = """
from transformers import GPT2Config, GPT2LMHeadModel


class OwnConfig(GPT2Config):
    model_type = "own"


class OwnForCausalLM(GPT2LMHeadModel):
    config_class = OwnConfig
"""


@pytest.fixture
def collect_of(collect_flags):
    """The reference run's command with other values for some of its flags."""

    def make(out, **changes):
        flags = dict(zip(collect_flags[1::2], collect_flags[2::2], strict=True))
        flags |= {f"--{name.replace('_', '-')}": str(value) for name, value in changes.items()}
        return ["collect", *(part for pair in flags.items() for part in pair), "--out", str(out)]

    return make


@pytest.fixture
def refused_collect(refused, collect_of, run_copy, tmp_path):
    """A collection that must be refused, into a run that exists and into a new folder: neither is touched."""

    def call(error, *extra, **changes):
        before = contents(run_copy)
        refused(error, *collect_of(run_copy, **changes), *extra)
        assert contents(run_copy) == before
        message = refused(error, *collect_of(tmp_path / "new", **changes), *extra)
        assert not (tmp_path / "new").exists()
        return message

    return call


@pytest.fixture
def own_code_model(tmp_path, monkeypatch):
    """A model folder whose architecture only its own code knows."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "own"
    GPT2LMHeadModel(GPT2Config(vocab_size=320, n_positions=64, n_embd=8, n_layer=1, n_head=1)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "own.py").write_text(OWN_CODE)
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    config |= {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": auto_map}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    return folder


def test_every_error_has_an_exit_status_of_its_own():
    classes = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, QuantascopeError)]
    assert len({e.exit_status for e in classes}) == len(classes)
    assert all(1 <= e.exit_status < 126 for e in classes)


def test_a_model_that_is_not_there(refused_collect, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "does not exist" in refused_collect(ModelNotFoundError, model=tmp_path / "nothing")
    message = refused_collect(ModelNotFoundError, model="nobody/nothing")
    assert "give the path of a downloaded folder" in message
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refused_collect(ModelNotFoundError, model=tmp_path / "empty")


def test_a_data_set_that_is_not_there(refused_collect, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "Give a file" in refused_collect(DatasetNotFoundError, dataset=tmp_path / "nothing.jsonl")
    assert "the hub cannot be reached" in refused_collect(DatasetNotFoundError, dataset="nobody/nothing")
    assert "leave split out" in refused_collect(DatasetNotFoundError, split="train")


def test_a_data_set_without_the_field_lists_its_fields(refused_collect, tmp_path):
    data = write_jsonl(tmp_path / "d.jsonl", [{"prose": "a b c", "title": "t", "kind": "k"}])
    message = refused_collect(MissingFieldError, dataset=data)
    assert all(field in message for field in ("prose (string)", "title (string)", "kind (string)", "text_field"))
    assert "Perhaps 'prose'?" in refused_collect(MissingFieldError, dataset=data, text_field="prosa")
    assert "'colour'" in refused_collect(MissingFieldError, label="colour")


@pytest.mark.parametrize(("bad", "what"), [("", "empty"), (None, "null"), (7, "of type int and not text")])
def test_a_bad_row_is_named_by_its_number(refused, collect_of, tmp_path, bad, what):
    data = write_jsonl(tmp_path / "d.jsonl", [{"text": t, "kind": "k"} for t in ("one two three", bad, "four five")])
    message = refused(BadRowError, *collect_of(tmp_path / "run", dataset=data))
    assert f"Row 1 (line 2) of d.jsonl cannot be used: its field text is {what}" in message
    assert "skip" in message
    assert not (tmp_path / "run/documents/documents.json").exists()


@pytest.mark.slow
def test_a_run_that_a_bad_row_stopped_takes_the_flag_that_helps(ray_cluster, refused, collect_of, tmp_path):
    data = write_jsonl(tmp_path / "d.jsonl", [{"text": t, "kind": "k"} for t in ("one two", "")])
    refused(BadRowError, *collect_of(tmp_path / "run", dataset=data))
    message = refused(ConfigurationError, *collect_of(tmp_path / "run", dataset=data, bad_rows="skip", max_loss=1e-9))
    assert "larger --max-loss" in message


def test_skipped_rows_are_counted(cli, bare_run):
    assert "8 documents, 834 tokens, 3 rows skipped" in cli("info", bare_run)[0]


def test_a_file_that_is_not_utf8(refused_collect, refused, collect_of, tmp_path):
    (tmp_path / "d.jsonl").write_bytes(b'{"text": "caf\xe9", "kind": "k"}\n')
    assert "byte 0xe9 at position 13" in refused_collect(EncodingError, dataset=tmp_path / "d.jsonl")
    (tmp_path / "e.jsonl").write_bytes(b'{"text": "one two", "kind": "k"}\n{"text": "caf\xe9", "kind": "k"}\n')
    message = refused(EncodingError, *collect_of(tmp_path / "other", dataset=tmp_path / "e.jsonl"))
    assert "Row 1 (line 2) of e.jsonl" in message


def test_weights_that_are_not_numbers(refused_collect, tmp_path):
    import torch

    model = tiny_neox()
    with torch.no_grad():
        model.gpt_neox.layers[1].mlp.dense_h_to_4h.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    tiny_tokenizer().save_pretrained(tmp_path / "nan")
    message = refused_collect(BadWeightsError, model=tmp_path / "nan")
    assert "gpt_neox.layers.1.mlp.dense_h_to_4h.weight" in message


def test_a_model_with_code_of_its_own(refused_collect, cli, collect_of, own_code_model, tmp_path, monkeypatch):
    assert "own.OwnConfig" in refused_collect(RemoteCodeError, model=own_code_model)
    assert not (tmp_path / "modules").exists()
    cli(*collect_of(tmp_path / "new", model=own_code_model), "--trust-remote-code", "--dry-run")
    assert (tmp_path / "modules").exists()
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(own_code_model))
    message = refused_collect(RemoteCodeError, "--trust-remote-code", model="some/model", revision="main")
    assert "40 hex digits" in message


def test_another_configuration_prints_both_sides(refused, collect_of, run_copy, tmp_path):
    before = contents(run_copy)
    for changes, difference in (
        ({"seed": 7}, "projection.seed: there 0, asked for 7"),
        ({"dim": 64}, "dim: there 128, asked for 64"),
        ({"max_loss": 50}, "selection.max_loss: there 100.0, asked for 50.0"),
        ({"bad_rows": "skip"}, "data.bad_rows: there 'stop', asked for 'skip'"),
        ({"model": save_tiny(tmp_path / "other", seed=1)}, "model.fingerprint: there "),
    ):
        message = refused(RunMismatchError, *collect_of(run_copy, **changes))
        assert difference in message
        assert "Choose another" in message
    assert contents(run_copy) == before


@pytest.mark.parametrize(
    ("changes", "accepted"),
    [
        ({"unit": "sentence"}, "token-loss, window"),
        ({"bad_rows": "mend"}, "stop, skip"),
        ({"blocks": "some"}, "paper, linear"),
        ({"projection": "random"}, "tensor-sketch, two-sided, "),
        ({"dtype": "int8"}, "float32, float64, bfloat16, float16"),
        ({"device": "tpu"}, "auto, cpu, mps, cuda"),
        ({"max_units": 0}, "1 or more"),
        ({"max_loss": -1}, "above 0"),
        ({"window_tokens": 65}, "context is 64"),
        ({"dim": 8}, "give at least 64"),
        ({"workers": 0}, "1 or more"),
        ({"name": "../x"}, "cannot be a name"),
        ({"prompt_field": "p"}, "both or neither"),
    ],
)
def test_an_unknown_value_says_what_is_accepted(refused_collect, changes, accepted):
    assert accepted in refused_collect(ConfigurationError, **changes)


def test_clustering_that_cannot_work(refused, run_copy):
    before = contents(run_copy)
    message = refused(ConfigurationError, "cluster", run_copy, "--num-quanta", "201")
    assert "num_quanta is 201, there are 200 rows" in message
    refused(ConfigurationError, "cluster", run_copy, "--num-quanta", "0")
    refused(ConfigurationError, "cluster", run_copy, "--num-quanta", "3", "--min-cosine", "0.5")
    assert "none, half, full" in refused(ConfigurationError, "cluster", run_copy, "--whitening", "some")
    assert "it has token-loss" in refused(RunNotFoundError, "cluster", run_copy, "--rows", "window")
    assert contents(run_copy) == before


def test_a_query_that_cannot_be_answered(refused, clustered_run, reference_run, tmp_path):
    message = refused(QueryTooLongError, "trace", clustered_run, "one two three " * 40, " four")
    assert re.search(r"have \d+ tokens, the model's context is 64", message)
    refused(ConfigurationError, "trace", clustered_run, "one", "")
    refused(ConfigurationError, "trace", clustered_run, "one", " two", "-k", "0")
    assert "`quantascope cluster`" in refused(RunNotFoundError, "trace", reference_run, "one", " two")
    assert "it has main" in refused(RunNotFoundError, "trace", clustered_run, "one", " two", "--quanta", "other")
    other = save_tiny(tmp_path / "other", seed=1)
    assert "--model" in refused(RunMismatchError, "trace", clustered_run, "one", " two", "--model", other)
    for command in ("info", "report", "cluster"):
        assert "`quantascope ls" in refused(RunNotFoundError, command, tmp_path)
    assert "no HTTP service yet" in refused(ConfigurationError, "info", "https://example.org:8080")
    assert "workers could not see it" in refused(ConfigurationError, "cluster", "memory://run")
    assert "not a folder" in refused(RunNotFoundError, "ls", tmp_path / "nothing")


def test_a_report_that_cannot_be_written(refused, clustered_run, tmp_path):
    assert "is not a folder" in refused(ConfigurationError, "report", clustered_run, "--out", tmp_path / "no/r.html")
    assert "cannot be written" in refused(ConfigurationError, "report", clustered_run, "--out", tmp_path)


def test_a_run_in_other_hands(refused, collect_of, run_copy):
    from quantascope.storage.run import Run

    with Run.open(run_copy).store.lock():
        before = contents(run_copy)
        for command in (collect_of(run_copy), ["cluster", run_copy], ["rm", run_copy, "--yes"]):
            assert f"process {os.getpid()}" in refused(RunBusyError, *command)
        assert contents(run_copy) == before


def test_a_place_that_cannot_be_written_to(refused, collect_of, tmp_path):
    """Permissions mean nothing to root, so a file stands where a folder is wanted."""
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file/run"):
        assert "choose another --out" in refused(NoSpaceError, *collect_of(out))
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/notes.txt").write_text("mine")
    assert "other things in it" in refused(RunNotFoundError, *collect_of(tmp_path / "folder"))
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["notes.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions mean nothing to root")
def test_a_folder_that_is_read_only(refused, collect_of, tmp_path):
    (tmp_path / "shut").mkdir(mode=0o500)
    assert "choose another --out" in refused(NoSpaceError, *collect_of(tmp_path / "shut/run"))


def test_no_room_for_ray(ray_cluster, refused, collect_of, tmp_path, monkeypatch):
    assert "Ray has room for 2 workers" in refused(RayStartError, *collect_of(tmp_path / "run", workers=1000))
    monkeypatch.setattr("quantascope.jobs.workers.ray_session._is_initialised", lambda: False)
    full = SimpleNamespace(f_bavail=10, f_frsize=4096)
    monkeypatch.setattr("quantascope.jobs.workers.ray_session.os.statvfs", lambda _: full)
    assert "0 MB free, 500 MB are needed" in refused(RayStartError, *collect_of(tmp_path / "run"))


def test_joining_a_cluster_without_a_token_is_refused(refused, collect_of, tmp_path, monkeypatch):
    monkeypatch.setattr("quantascope.jobs.workers.ray_session._is_initialised", lambda: False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    message = refused(RayStartError, *collect_of(tmp_path / "run", ray_address="127.0.0.1:6379"))
    assert "RAY_AUTH_MODE=token" in message


def test_a_disk_that_fills_while_documents_are_written(refused, collect_of, reference_run, tmp_path, monkeypatch):
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr("quantascope.storage.local.os.fsync", full)
    assert "free some space" in refused(NoSpaceError, *collect_of(tmp_path / "run"))
    assert contents(tmp_path / "run") == {"manifest.json": contents(reference_run)["manifest.json"]}


@pytest.mark.slow
def test_a_disk_that_is_really_full_keeps_what_was_committed(
    ray_cluster, cli, refused, collect_of, reference_run, tmp_path
):
    """The estimate fits, the blocks' files do not: a worker meets the end of the disk."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", disk], capture_output=True).returncode:
        pytest.skip("only root can make a small disk")
    try:
        message = refused(NoSpaceError, *collect_of(disk / "run"))
        assert "The same command" in message or "give the same command again to go on" in message
        commits = disk / "run/rows/token-loss/commits"
        kept = {p: p.stat().st_mtime_ns for p in commits.iterdir()}
        assert 0 < len(kept) < 50
        wanted = contents(reference_run)
        assert contents(disk / "run").items() <= wanted.items()
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        cli(*collect_of(disk / "run"))
        assert contents(disk / "run") == wanted
        assert {p: p.stat().st_mtime_ns for p in kept} == kept
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
