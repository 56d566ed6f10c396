"""Memory and speed of reading data: small rows in every format, read through as documents, at two sizes.

Each size of each format is read by a process of its own; its memory is what that process took at most beyond what it
had after the first thousand documents. Time is the processor's, so that other programs do not count. One bar for each
format: reading ten times the rows takes no more memory.
"""

import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from result import Bar, arguments, finish

WORDS = ("the", "oak", "is", "a", "tree", "whose", "leaves", "fall", "in", "autumn", "and", "grow", "again")
SHARD_ROWS = 5_000
SLACK_MB = 16.0
"""What allocators keep for themselves, and do not give back."""


def rows(number: int, seed: int) -> Iterator[dict[str, str]]:
    picks = np.random.default_rng(seed).integers(0, len(WORDS), (number, 16)).tolist()
    for index, row in enumerate(picks):
        yield {"text": " ".join(WORDS[i] for i in row), "id": str(index)}


def lines(number: int, seed: int) -> Iterator[bytes]:
    for row in rows(number, seed):
        yield json.dumps(row).encode() + b"\n"


def write_jsonl(path: Path, number: int, seed: int) -> None:
    with path.open("wb") as opened:
        opened.writelines(lines(number, seed))


def write_gzip(path: Path, number: int, seed: int) -> None:
    with gzip.open(path, "wb", compresslevel=1) as opened:
        opened.writelines(lines(number, seed))


def write_zstd(path: Path, number: int, seed: int) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as opened:
        for line in lines(number, seed):
            opened.write(line)


def write_array(path: Path, number: int, seed: int) -> None:
    with path.open("wb") as opened:
        for index, line in enumerate(lines(number, seed)):
            opened.write((b"[" if index == 0 else b",") + line)
        opened.write(b"]")


def write_csv(path: Path, number: int, seed: int) -> None:
    with path.open("w", encoding="utf-8") as opened:
        opened.write("text,id\n")
        opened.writelines(f"{row['text']},{row['id']}\n" for row in rows(number, seed))


def write_one_group(path: Path, number: int, seed: int) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows(number, seed))), path, row_group_size=number)


def write_shards(path: Path, number: int, seed: int) -> None:
    path.mkdir()
    for shard in range(number // SHARD_ROWS):
        write_one_group(path / f"{shard:03d}.parquet", SHARD_ROWS, seed + shard)


def write_saved(path: Path, number: int, seed: int) -> None:
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset.from_list(list(rows(number, seed))).save_to_disk(path)


FORMATS: dict[str, Callable[[Path, int, int], None]] = {
    "rows.jsonl": write_jsonl,
    "rows.jsonl.gz": write_gzip,
    "rows.jsonl.zst": write_zstd,
    "rows.json": write_array,
    "rows.csv": write_csv,
    "one_group.parquet": write_one_group,
    "shards": write_shards,
    "saved": write_saved,
}


def peak_mb() -> float:
    """Of this process alone; what getrusage says would begin at the size of the process that started it."""
    return next(
        float(line.split()[1]) / 1e3
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        if line.startswith("VmHWM")
    )


def read_through(path: str) -> dict[str, float]:
    """In the process that is measured."""
    from quantascope.jobs.data.source import DataFingerprint, DataSource, read_documents

    fingerprint = DataFingerprint()
    count, start, before = 0, time.process_time(), 0.0
    for document in read_documents(DataSource(dataset=path, text_field="text", id_field="id")):
        fingerprint.add(document)
        count += 1
        if count == 1000:
            before = peak_mb()
    seconds = time.process_time() - start
    return {
        "rows": count,
        "cpu_seconds": seconds,
        "rows_per_cpu_second": count / seconds,
        "grown_mb": peak_mb() - before,
    }


def measure(path: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--read", str(path)]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return json.loads(done.stdout)


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--read", metavar="PATH", help="read one data set through, and print what it took")
    options = parser.parse_args()
    if options.read:
        print(json.dumps(read_through(options.read)))
        return
    large = 50_000 if options.quick else 1_000_000
    found, bars = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, write in FORMATS.items():
            grown = []
            for number in (large // 10, large):
                place = Path(folder) / str(number) / name
                place.parent.mkdir(exist_ok=True)
                write(place, number, options.seed)
                row = measure(place)
                found.append({"format": name} | row)
                grown.append(row["grown_mb"])
            more = grown[1] - grown[0]
            bars.append(
                Bar(name=f"{name}: MB more for ten times the rows", value=more, limit=SLACK_MB, holds=more <= SLACK_MB)
            )
    finish("reading", ("format", "rows", "cpu_seconds", "rows_per_cpu_second", "grown_mb"), found, bars, options)


if __name__ == "__main__":
    main()
