"""Token-loss rows of margins: what is stored, what they may be compared with, what is traced."""

import numpy as np
import pytest
import torch

from quantascope.attribution.clustering import AverageLinkage
from quantascope.errors import ConfigurationError, RunMismatchError
from quantascope.jobs.collecting.collect import collect
from quantascope.jobs.collecting.config import MARGIN, RowConfig, SelectionConfig, SetConfig
from quantascope.jobs.collecting.plan import make_engine
from quantascope.jobs.models.model import load_model
from quantascope.jobs.quanta.cluster import QuantaConfig, make_quanta
from quantascope.jobs.quanta.joined import JoinedRows
from quantascope.jobs.quanta.trace import Tracer
from quantascope.jobs.workers.ray_session import RayOptions
from quantascope.storage import Run
from tests.here import workers_here
from tests.plain_loop import plain_rows
from tests.tiny import save_tiny

ONE = RayOptions(num_workers=1)
ROWS = {"dim": 128, "rows_per_block": 8, "batch_tokens": 128}


def test_rows_are_the_gradients_of_margins_and_losses_stay_losses(tiny_collection, tmp_path, tmp_path_factory):
    folder = save_tiny(tmp_path_factory.mktemp("m") / "f64", dtype="float64")
    collection = tiny_collection(tmp_path / "run", model=folder, rows=RowConfig(**ROWS, loss="margin"))
    with workers_here():
        collect(collection, ONE)
        collect(tiny_collection(tmp_path / "losses", model=folder), ONE)
    run = Run.open(tmp_path / "run")
    row_set = run.row_set("token-loss")
    assert row_set.plan["loss"] == MARGIN
    loaded = load_model(collection.model)
    engine, _, _ = make_engine(collection.config.rows, loaded, row_set.plan["projection"])
    kept, rows = row_set.unit_rows()
    units = row_set.units().to_pylist()
    for unit, row in zip(kept[:10], rows, strict=False):
        entry = units[unit]
        ids = torch.from_numpy(run.documents[entry["document"]].tokens.astype(np.int64))
        ids = ids[entry["first_token"] : entry["last_token"] + 1][None]

        def margin(model, ids):
            logits = model(input_ids=ids).logits[0, -2]
            return (logits.mean() - logits[ids[0, -1]])[None]

        wanted = plain_rows(engine, ids, margin)[0].numpy()
        np.testing.assert_allclose(row, wanted / np.linalg.norm(wanted), atol=1e-3)  # float16 on disk
    losses = Run.open(tmp_path / "losses").row_set("token-loss")
    np.testing.assert_allclose([u["loss"] for u in units], np.asarray(losses.units()["loss"]), rtol=1e-5)
    with pytest.raises(RunMismatchError, match="margins"):
        JoinedRows([_named(losses, "losses"), row_set])


def test_a_behaviour_is_traced_by_its_margin_and_keeps_its_loss(tiny_collection, tmp_path):
    found = {}
    for loss in ("cross-entropy", "margin"):
        with workers_here():
            collect(tiny_collection(tmp_path / loss, rows=RowConfig(**ROWS, loss=loss)), ONE)
        quanta = make_quanta(Run.open(tmp_path / loss), QuantaConfig(clusterer=AverageLinkage(num_quanta=4)))
        found[loss] = Tracer(quanta).trace("One two three", " four", k=5)
    assert found["margin"].loss == pytest.approx(found["cross-entropy"].loss, rel=1e-6)
    assert not np.allclose(found["margin"].supporting.score, found["cross-entropy"].supporting.score, rtol=1e-3)


def test_margins_are_for_token_losses():
    with pytest.raises(ConfigurationError, match="token-loss units"):
        SetConfig(selection=SelectionConfig(unit_type="window"), rows=RowConfig(loss="margin"))
    with pytest.raises(ConfigurationError, match="cross-entropy, margin"):
        RowConfig(loss="hinge")


def _named(row_set, name):
    row_set.name = name
    return row_set
