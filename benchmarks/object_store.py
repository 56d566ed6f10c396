"""A run in an object store against the same run in a folder: commits, collections, and reads with and without a cache.

The store is moto's S3 server on this machine: it costs a few milliseconds a request and shares the processor, and has
no network before it. What is measured is what quantascope adds; a distant store adds its own latency and bandwidth.
Everything is measured in turns, folder and store.
"""

import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from made_up_runs import save_model, texts
from models import neox
from result import Bar, arguments, finish

from quantascope.jobs.collecting.collect import collect
from quantascope.jobs.collecting.collection import Collection
from quantascope.jobs.collecting.config import RowConfig, SelectionConfig, SetConfig
from quantascope.jobs.data.source import DataSource
from quantascope.jobs.models.model import ModelSource
from quantascope.jobs.workers.ray_session import RayOptions, ray_session
from quantascope.storage import RowBlock, Run

DIM, ROWS = 4096, 2048
"""A block of 16 MB, the largest that a plan makes."""
BLOCK_SECONDS = 20.0
"""What a plan takes a block of rows to cost to compute, at most."""


@contextmanager
def s3_server(cache: Path) -> Iterator[str]:
    """The URI of a bucket on a server of its own; this process and its children find it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "XDG_CACHE_HOME": str(cache),
    }
    try:
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port)
                connection.request("PUT", "/bucket")
                connection.getresponse().read()
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        yield "s3://bucket"
    finally:
        process.kill()
        process.wait()


def timed(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def block_of_rows(block: int, seed: int) -> RowBlock:
    rows = np.random.default_rng([seed, block]).standard_normal((ROWS, DIM), np.float32)
    numbers = range(block * ROWS, (block + 1) * ROWS)
    units = pa.table({"unit": pa.array(numbers, pa.int64()), "loss": pa.array([0.5] * ROWS, pa.float32())})
    return RowBlock(rows=rows, block_norms=np.linalg.norm(rows, axis=1, keepdims=True), units=units)


def measure_commits(places: dict[str, str], num_blocks: int, seed: int) -> dict[str, list[float]]:
    """Seconds of each block's commit; encoding and checksums included."""
    plan = {
        "unit_type": "window",
        "dim": DIM,
        "rows_per_block": ROWS,
        "blocks": [{"name": "all", "first_column": 0, "last_column": DIM - 1}],
    }
    row_sets = {}
    for name, place in places.items():
        with Run.create(place, config={}) as run:
            run.documents.finish(run.documents.write(iter([]), label_names=[]), tokenizer="{}")
            row_sets[name] = run.new_row_set("rows")
            row_sets[name].freeze(plan, pa.table({"unit": pa.array(range(num_blocks * ROWS), pa.int64())}))
    found: dict[str, list[float]] = {name: [] for name in places}
    for block in range(num_blocks):
        content = block_of_rows(block, seed)
        for name, row_set in row_sets.items():
            found[name].append(timed(lambda row_set=row_set: row_set.commit(block, content)))  # noqa: B023
    return found


def measure_reads(places: dict[str, str]) -> dict[str, float]:
    """Seconds for all rows as unit rows: from the folder, from the store, and again from the cache."""

    def read(place: str) -> None:
        Run.open(place).row_set().unit_rows()

    read(places["folder"])  # so that the folder's pages, like the copies', are in memory
    return {
        "read: store, first time": timed(lambda: read(places["store"])),
        "read: store, from the cache": statistics.median(timed(lambda: read(places["store"])) for _ in range(3)),
        "read: folder": statistics.median(timed(lambda: read(places["folder"])) for _ in range(3)),
    }


def measure_collections(folder: Path, bucket: str, rounds: int, seed: int) -> dict[str, list[float]]:
    """Seconds of whole collections (without Ray's start) of a small model by one worker, in turns."""
    save_model(folder / "model", neox(192, 4, 4096), seed)
    lines = [json.dumps({"text": text}) for text in texts(seed, num_documents=40, num_words=1000)]
    (folder / "data.jsonl").write_text("\n".join(lines), encoding="utf-8")
    config = SetConfig(
        selection=SelectionConfig(unit_type="window"), rows=RowConfig(dim=1024, rows_per_block=64, shares="size")
    )
    options = RayOptions(num_workers=1)
    found: dict[str, list[float]] = {"folder": [], "store": []}
    with ray_session(options):
        for number in range(rounds):
            for name, base in (("folder", str(folder)), ("store", bucket)):
                job = Collection(
                    out=f"{base}/collected-{number}",
                    model=ModelSource(model=str(folder / "model")),
                    data=DataSource(dataset=str(folder / "data.jsonl")),
                    config=config,
                )
                found[name].append(timed(lambda job=job: collect(job, options)))
    return found


def main() -> None:
    parser = arguments(__doc__ or "")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    num_blocks, rounds = (4, 1) if options.quick else (12, 3)
    with tempfile.TemporaryDirectory(prefix="quantascope-") as scratch, s3_server(Path(scratch) / "cache") as bucket:
        folder = Path(scratch)
        places = {"folder": str(folder / "run"), "store": f"{bucket}/run"}
        commits = {k: statistics.median(v) for k, v in measure_commits(places, num_blocks, options.seed).items()}
        reads = measure_reads(places)
        collections = measure_collections(folder, bucket, rounds, options.seed)
    gigabytes = num_blocks * ROWS * DIM * 2 / 1e9
    extra = commits["store"] - commits["folder"]
    ratio = statistics.median(s / f for s, f in zip(collections["store"], collections["folder"], strict=True))
    rows: list[dict[str, Any]] = [
        {"what": f"commit of a 16 MB block: {name}", "value": seconds, "unit": "s"} for name, seconds in commits.items()
    ]
    rows.append({"what": "the same, over a block's work", "value": extra / BLOCK_SECONDS, "unit": "share"})
    rows += [{"what": what, "value": gigabytes / seconds, "unit": "GB/s"} for what, seconds in reads.items()]
    rows += [
        {"what": f"collection: {name}", "value": statistics.median(seconds), "unit": "s"}
        for name, seconds in collections.items()
    ]
    rows.append({"what": "collection: store over folder", "value": ratio, "unit": ""})
    cached = reads["read: store, from the cache"] / reads["read: folder"]
    bars = [
        Bar(name="a commit's extra seconds over a block's 20", value=extra / 20, limit=0.05, holds=extra / 20 <= 0.05),
        Bar(name="reads from the cache over the folder's", value=cached, limit=1.5, holds=cached <= 1.5),
    ]
    finish("object_store", ("what", "value", "unit"), rows, bars, options)


if __name__ == "__main__":
    main()
