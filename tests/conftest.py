"""Fixtures that all tests share: a tiny model and its data, one local Ray, and runs that were collected with them."""

import fcntl
import os
import shutil
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

import tests.typechecker  # noqa: F401 - the hook names it

# The shapes in attribution's signatures are checked at run time, in tests only: the hook must come before any import.
install_import_hook("quantascope.attribution", "tests.typechecker.checked")

from tests.command_line import run_main  # noqa: E402 - after the hook
from tests.here import workers_here  # noqa: E402
from tests.tiny import SENTENCES, save_tiny, write_jsonl  # noqa: E402

LONG_FILES = ("faults/test_kill.py", "test_docs.py", "jobs/test_ray_job.py", "jobs/test_collect.py")
"""They begin first, so that the processes of `make test` end at about the same time."""


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    long = {here / name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: long.get(item.path, len(long)))


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """`made_once(name, make)`: a folder that the first process to ask fills with `make(folder)`, for all; read only."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    shared.mkdir(exist_ok=True)

    def call(name, make):
        folder, done = shared / name, shared / f"{name}.done"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return call


@pytest.fixture(scope="session")
def tiny_model_folder(made_once):
    """A saved tiny GPT-NeoX with its tokenizer; read only."""
    return made_once("model", save_tiny)


@pytest.fixture(scope="session")
def tiny_data(made_once):
    """Documents with a label, as JSON lines."""
    rows = [{"text": s * 3, "kind": f"k{i % 2}"} for i, s in enumerate(SENTENCES)]
    return made_once("data", lambda folder: write_jsonl(folder / "tiny.jsonl", rows)) / "tiny.jsonl"


@pytest.fixture(scope="session")
def ray_cluster():
    """A local Ray that `collect` and its kin find connected."""
    from quantascope.jobs.workers.ray_session import RayOptions, ray_session

    with ray_session(RayOptions(num_workers=2)):
        yield


@pytest.fixture(scope="session")
def tiny_collection(tiny_model_folder, tiny_data):
    """Makes a collection of the tiny model on the tiny data; keywords go to the selection."""
    from quantascope.jobs.collecting.collect import Collection
    from quantascope.jobs.collecting.config import RowConfig, SelectionConfig, SetConfig
    from quantascope.jobs.data.source import DataSource
    from quantascope.jobs.models.model import ModelSource

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
    from quantascope.jobs.collecting.collect import collect
    from quantascope.jobs.workers.ray_session import RayOptions

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
def reference_run(collect_flags, made_once):
    """What that command gives when nothing disturbs it; read only."""

    def make(folder):
        with workers_here():
            assert run_main(*collect_flags, "--out", folder / "run") == 0

    return made_once("reference", make) / "run"


@pytest.fixture(scope="session")
def clustered_run(reference_run, made_once):
    """A copy of it with quanta; read only."""

    def make(folder):
        assert run_main("cluster", shutil.copytree(reference_run, folder / "run")) == 0

    return made_once("clustered", make) / "run"


@pytest.fixture(scope="session")
def bare_run(collect_flags, tiny_data, made_once):
    """The same documents between bad rows, which are skipped; without text; with windows beside the tokens; quanta."""

    def make(folder):
        lines = tiny_data.read_text().splitlines()
        data = folder / "bad.jsonl"
        data.write_text("\n".join(['{"text": ""}', *lines, '{"text": null}', '{"text": 7}', ""]))
        flags = [str(data) if flag == str(tiny_data) else flag for flag in collect_flags]
        with workers_here():
            for unit in ("token-loss", "window"):
                assert run_main(*flags, "--out", folder / "run", "--bad-rows", "skip", "--no-text", "--unit", unit) == 0
        assert run_main("cluster", folder / "run") == 0

    return made_once("bare", make) / "run"


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
