"""How tests/data/old_run was made: with the code of commit 5026d27, the last of schema 1, in an empty folder.

    git archive 5026d27 | tar -x -C OLD
    mkdir OLD/package && cp -r OLD/quantascope OLD/package
    for room in attribution storage jobs api; do cp -r OLD/$room OLD/package/quantascope; done
    PYTHONPATH=OLD/package:. OMP_NUM_THREADS=1 python tests/data/make_old_run.py EMPTY

The tiny model and its data are made there too, under relative names, and not kept: they are made again by the tests.
"""

import os
import shutil
import sys
from pathlib import Path

from quantascope.attribution.clustering import AverageLinkage
from quantascope.jobs.collect import Collection, collect
from quantascope.jobs.config import RowConfig, SelectionConfig, SetConfig
from quantascope.jobs.data import DataSource
from quantascope.jobs.model import ModelSource
from quantascope.jobs.quanta.cluster import QuantaConfig, make_quanta, measure
from quantascope.jobs.ray_session import RayOptions
from quantascope.storage import Run
from tests.here import workers_here
from tests.tiny import SENTENCES, save_tiny, write_jsonl

os.chdir(sys.argv[1])
save_tiny("model")
write_jsonl("tiny.jsonl", [{"text": s, "kind": f"k{i % 2}"} for i, s in enumerate(SENTENCES)])
collection = Collection(
    out="run",
    model=ModelSource(model="model"),
    data=DataSource(dataset="tiny.jsonl", label_fields=("kind",)),
    config=SetConfig(
        selection=SelectionConfig(max_loss=100.0, max_units=12, window_tokens=32),
        rows=RowConfig(dim=64, rows_per_block=4, batch_tokens=128),
    ),
)
with workers_here():
    collect(collection, RayOptions(num_workers=1))
run = Run.open("run")
with run.store.lock():
    measure(make_quanta(run, QuantaConfig(clusterer=AverageLinkage(num_quanta=3))), num_shuffles=5)
for name in ("run/log", "run/.tmp", "model"):
    shutil.rmtree(name, ignore_errors=True)
for name in ("run/.lock", "tiny.jsonl"):
    Path(name).unlink()
