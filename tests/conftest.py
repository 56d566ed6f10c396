"""Fixtures that all tests share: a tiny model and its data, one local Ray, and runs that were collected with them."""

import shutil
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# The shapes in attribution's signatures are checked at run time, in tests only: the hook must come before any import.
install_import_hook("quantascope.attribution", "beartype.beartype")

from tests.command_line import run_main  # noqa: E402 - after the hook
from tests.tiny import SENTENCES, save_tiny, write_jsonl  # noqa: E402


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory):
    """A saved tiny GPT-NeoX with its tokenizer; read only."""
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """Documents with a label, as JSON lines."""
    rows = [{"text": s * 3, "kind": f"k{i % 2}"} for i, s in enumerate(SENTENCES)]
    return write_jsonl(tmp_path_factory.mktemp("data") / "tiny.jsonl", rows)


@pytest.fixture(scope="session")
def ray_cluster():
    """A local Ray that `collect` and its kin find connected."""
    from quantascope.jobs.ray_session import RayOptions, ray_session

    with ray_session(RayOptions(num_workers=2)):
        yield


@pytest.fixture(scope="session")
def tiny_collection(tiny_model_folder, tiny_data):
    """Makes a collection of the tiny model on the tiny data; keywords go to the selection."""
    from quantascope.jobs.collect import Collection
    from quantascope.jobs.config import RowConfig, SelectionConfig, SetConfig
    from quantascope.jobs.data import DataSource
    from quantascope.jobs.model import ModelSource

    def make(out, *, rows=None, keep_text=True, model=None, **selection):
        chosen = {"max_loss": 100.0, "max_units": 40, "window_tokens": 32} | selection
        return Collection(
            out=str(out),
            model=ModelSource(model=str(model or tiny_model_folder)),
            data=DataSource(dataset=str(tiny_data), label_fields=("kind",)),
            config=SetConfig(
                selection=SelectionConfig(**chosen), rows=rows or RowConfig(dim=128, rows_per_block=8, batch_tokens=128)
            ),
            keep_text=keep_text,
        )

    return make


@pytest.fixture(scope="session")
def collected_run(ray_cluster, tiny_collection, tmp_path_factory):
    """A run with the tiny model's token rows, collected once by one worker; read only."""
    from quantascope.jobs.collect import collect
    from quantascope.jobs.ray_session import RayOptions

    out = tmp_path_factory.mktemp("collected") / "run"
    collect(tiny_collection(out), RayOptions(num_workers=1))
    return out


@pytest.fixture
def tiny_run(collected_run, tmp_path):
    """A copy of it to work on."""
    return Path(shutil.copytree(collected_run, tmp_path / "run"))


@pytest.fixture(scope="session")
def collect_flags(tiny_model_folder, tiny_data):
    """The `collect` command of a run of 200 units in 50 blocks, without its --out."""
    return [
        *("collect", "--model", str(tiny_model_folder), "--dataset", str(tiny_data), "--label", "kind"),
        *("--max-loss", "100", "--max-units", "200", "--window-tokens", "32"),
        *("--dim", "128", "--rows-per-block", "4", "--workers", "1"),
    ]


@pytest.fixture(scope="session")
def reference_run(ray_cluster, collect_flags, tmp_path_factory):
    """What that command gives when nothing disturbs it; read only."""
    out = tmp_path_factory.mktemp("reference") / "run"
    assert run_main(*collect_flags, "--out", out) == 0
    return out


@pytest.fixture(scope="session")
def clustered_run(reference_run, tmp_path_factory):
    """A copy of it with quanta; read only."""
    out = shutil.copytree(reference_run, tmp_path_factory.mktemp("clustered") / "run")
    assert run_main("cluster", out) == 0
    return out


@pytest.fixture(scope="session")
def bare_run(ray_cluster, collect_flags, tiny_data, tmp_path_factory):
    """The same documents between bad rows, which are skipped; without text; with windows beside the tokens; quanta."""
    folder = tmp_path_factory.mktemp("bare")
    lines = tiny_data.read_text().splitlines()
    data = folder / "bad.jsonl"
    data.write_text("\n".join(['{"text": ""}', *lines, '{"text": null}', '{"text": 7}', ""]))
    flags = [str(data) if flag == str(tiny_data) else flag for flag in collect_flags]
    for unit in ("token-loss", "window"):
        assert run_main(*flags, "--out", folder / "run", "--bad-rows", "skip", "--no-text", "--unit", unit) == 0
    assert run_main("cluster", folder / "run") == 0
    return folder / "run"


@pytest.fixture
def run_copy(clustered_run, tmp_path):
    """A copy of that to work on."""
    return Path(shutil.copytree(clustered_run, tmp_path / "run"))


@pytest.fixture
def cli(capsys):
    """Calls the command line in this process: takes arguments and the exit status to expect, gives stdout, stderr."""

    def call(*arguments, status=0):
        capsys.readouterr()
        found = run_main(*arguments)
        out, err = capsys.readouterr()
        assert found == status, f"exit status {found}\n{err}"
        return out, err

    return call


@pytest.fixture
def refused(cli):
    """Calls the command line with what it must refuse: one message, that error's status, nothing on stdout."""

    def call(error, *arguments):
        out, err = cli(*arguments, status=error.exit_status)
        assert out == ""
        assert "Traceback" not in err
        _, found, message = err.partition("error: ")
        assert found, err
        assert "error: " not in message
        return message

    return call
