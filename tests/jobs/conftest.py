"""Fixtures of the jobs' tests: one local Ray for all of them, and collections of a tiny model."""

import shutil
from pathlib import Path

import pytest

from quantascope.jobs.collect import Collection, collect
from quantascope.jobs.config import RowConfig, SelectionConfig, SetConfig
from quantascope.jobs.data import DataSource
from quantascope.jobs.model import ModelSource
from quantascope.jobs.ray_session import RayOptions, ray_session
from tests.tiny import SENTENCES, write_jsonl


@pytest.fixture(scope="session")
def ray_cluster():
    """A local Ray that `collect` and its kin find connected."""
    with ray_session(RayOptions(num_workers=2)):
        yield


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """Documents with a label, as JSON lines."""
    rows = [{"text": s * 3, "kind": f"k{i % 2}"} for i, s in enumerate(SENTENCES)]
    return write_jsonl(tmp_path_factory.mktemp("data") / "tiny.jsonl", rows)


@pytest.fixture(scope="session")
def collected_run(ray_cluster, tiny_collection, tmp_path_factory):
    """A run with the tiny model's token rows, collected once by one worker; read only."""
    out = tmp_path_factory.mktemp("collected") / "run"
    collect(tiny_collection(out), RayOptions(num_workers=1))
    return out


@pytest.fixture
def tiny_run(collected_run, tmp_path):
    """A copy of it to work on."""
    return Path(shutil.copytree(collected_run, tmp_path / "run"))


@pytest.fixture(scope="session")
def tiny_collection(tiny_model_folder, tiny_data):
    """Makes a collection of the tiny model on the tiny data; keywords go to the selection."""

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
