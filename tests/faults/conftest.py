"""A small run with everything that a run can hold, made in this process; and what reads each of its files."""

import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests.command_line import run_main
from tests.here import workers_here
from tests.s3_server import bucket, s3  # noqa: F401 - fixtures


@pytest.fixture(scope="session")
def small_collection(tiny_collection):
    """12 units of 64 numbers in 3 blocks."""
    from quantascope.jobs.collecting.config import RowConfig

    def make(out, **changes):
        rows = RowConfig(dim=64, rows_per_block=4, batch_tokens=128, shares="size")
        return tiny_collection(out, rows=rows, **{"max_units": 12} | changes)

    return make


@pytest.fixture(scope="session")
def quick_collect():
    """`collect` in this process, with a model that is loaded once for all calls."""
    from quantascope.jobs.collecting import collect, worker
    from quantascope.jobs.models import model

    load = cache(model.load_model)

    def call(collection):
        from quantascope.jobs.workers.ray_session import RayOptions

        with workers_here(), pytest.MonkeyPatch.context() as patch:
            for module in (collect, worker):
                patch.setattr(module, "load_model", load)
            patch.setattr(collect, "check_model", lambda _: None)
            return collect.collect(collection, RayOptions(num_workers=1))

    return call


@pytest.fixture(scope="session")
def small_run(made_once, small_collection, quick_collect):
    """Token rows, quanta, evidence, curves, a trace and a log; read only."""

    def make(folder):
        from quantascope.storage import Run

        quick_collect(small_collection(folder / "run"))
        assert run_main("cluster", folder / "run", "--num-quanta", "3") == 0
        assert run_main("trace", folder / "run", "When John and", " Mary", "--save", "Mary") == 0
        run = Run.open(folder / "run")
        losses = np.zeros((12, 2), np.float32)
        facts = {"checkpoints": ["a-1", "b-2"], "steps": [1, 2]}
        source = run.row_set().fingerprint()
        run.derived("curves", "token-loss").write(facts, source=source, arrays={"losses": losses})

    return made_once("small", make) / "run"


@pytest.fixture
def small_copy(small_run, tmp_path):
    """A copy of it to work on."""
    return shutil.copytree(small_run, tmp_path / "run")


@pytest.fixture
def old_run(tmp_path, tiny_model_folder, tiny_data, monkeypatch):
    """A copy of a run of schema 1 (tests/data/make_old_run.py), in a folder where its relative names lead somewhere."""
    here = tmp_path / "old"
    shutil.copytree(Path(__file__).parent.parent / "data/old_run", here / "run")
    (here / "model").symlink_to(tiny_model_folder)
    shutil.copy(tiny_data, here / "tiny.jsonl")
    monkeypatch.chdir(here)
    return here / "run"
