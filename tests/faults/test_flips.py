"""Bits flip and files end early, anywhere in a run: `verify` names the file, and no answer is taken from it."""

import json
import random

import pytest

from quantascope.api.client import Client
from quantascope.errors import QuantascopeError
from quantascope.jobs.change.curves import load_curves
from quantascope.jobs.quanta.cluster import Quanta
from quantascope.jobs.verify import verify
from quantascope.storage import Run
from quantascope.storage.checked import encode_json

ALL = (pytest.mark.slow, pytest.mark.timeout(1200))
SEED = 20260801


def read_documents(root):
    run = Run.open(root)
    list(run.documents)
    run.documents.tokenizer()


def read_rows(root):
    row_set = Run.open(root).row_set()
    row_set.selection()
    row_set.unit_rows()
    row_set.block_norms()
    row_set.fingerprint()


def read_quanta(root):
    quanta = Quanta(Run.open(root))
    assert len(quanta.units) == 12
    assert len(quanta.table) > 0
    quanta.rows, quanta.centroids, quanta.merges, quanta.tree_table, quanta.address()
    quanta.run.derived("quanta", "main").array("layout")


READERS = {
    "manifest.json": Run.open,
    "documents": read_documents,
    "rows": read_rows,
    "quanta": read_quanta,
    "index": lambda root: Run.open(root).derived("index", "main").file("rows.faiss"),
    "evidence": lambda root: Quanta(Run.open(root)).evidence(),
    "curves": lambda root: load_curves(Run.open(root), "token-loss"),
    "traces": lambda root: Client(root).traces(),
    "log": lambda root: Run.open(root).logged("collect"),
}
"""What in quantascope touches the files of each folder. Nothing in it reads zarr.json, which is for others."""


def files_of(run):
    return sorted(p for p in run.rglob("*") if p.is_file() and p.name != ".lock")


def spoil(data, chance):
    """One bit flipped, or, one time in four, the end cut off."""
    if chance.random() < 0.25:
        return data[: chance.randrange(len(data))]
    bad = bytearray(data)
    bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
    return bytes(bad)


@pytest.mark.parametrize("times", [pytest.param(1000, marks=ALL), 100])
def test_every_flip_and_every_cut_is_found(small_copy, times):
    chance = random.Random(SEED)
    files = files_of(small_copy)
    assert {p.relative_to(small_copy).parts[0] for p in files} == READERS.keys()
    for read in READERS.values():
        read(small_copy)
    assert verify(str(small_copy)).is_clean
    for _ in range(times):
        path = chance.choice(files)
        key = path.relative_to(small_copy).as_posix()
        good = path.read_bytes()
        path.write_bytes(spoil(good, chance))
        found = verify(str(small_copy))
        assert [f.file for f in found.findings if f.kind in ("damaged", "torn")] == [key]
        assert "quantascope repair" in found.findings[0].mend
        if path.name != "zarr.json":
            with pytest.raises(QuantascopeError):
                READERS[key.split("/")[0]](small_copy)
        path.write_bytes(good)
    assert verify(str(small_copy)).is_clean


ODD = (b"null", b"1e999", b"-1", b'"\\ud800"', b"[" * 2000, b"9" * 5000, b"NaN")
"""What JSON's own reader might stumble over."""


def mutate(data, chance):
    """Bytes changed, put in, taken out, doubled or replaced by others of the file."""
    a, b = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    kind = chance.randrange(5)
    if kind == 0:
        return spoil(data, chance)
    if kind == 1:
        return data[:a] + chance.randbytes(chance.randrange(1, 40)) + data[a:]
    if kind == 2:
        return data[:a] + data[b:]
    if kind == 3:
        return data[:b] + data[a:]
    return (
        data[:a] + chance.choice([b"null", b"1e999", b"-1", b'"\\ud800"', b"[" * 2000, b"9" * 5000, b"NaN"]) + data[b:]
    )


@pytest.mark.parametrize("times", [pytest.param(10_000, marks=ALL), 300])
def test_mutated_manifests_records_and_indexes_are_refused(small_copy, times):
    chance = random.Random(SEED)
    places = {
        "manifest.json": Run.open,
        "rows/token-loss/commits/00001.json": lambda root: Run.open(root).row_set().record(1),
        "rows/token-loss/set.json": lambda root: Run.open(root).row_set().plan,
        "documents/documents.json": lambda root: Run.open(root).documents.index,
        "quanta/main/facts.json": lambda root: Run.open(root).derived("quanta", "main").facts(),
        "index/main/rows.faiss": READERS["index"],
    }
    for _ in range(times):
        key = chance.choice(list(places))
        path = small_copy / key
        good = path.read_bytes()
        bad = mutate(good, chance)
        if bad != good:
            path.write_bytes(bad)
            with pytest.raises(QuantascopeError):
                places[key](small_copy)
            path.write_bytes(good)


@pytest.mark.parametrize("times", [pytest.param(2000, marks=ALL), 200])
def test_wrong_values_under_a_right_checksum_are_refused(small_copy, times):
    """As a writer with an error would leave them."""
    chance = random.Random(SEED)
    places = {
        "manifest.json": ("schema_version", "config"),
        "rows/token-loss/commits/00001.json": ("block", "rows", "files", "plan"),
    }
    for _ in range(times):
        key = chance.choice(list(places))
        path = small_copy / key
        good = path.read_bytes()
        value = json.loads(good)
        value.pop("checksum")
        field = chance.choice(places[key])
        wrong = [None, True, -1, 99, 1.5, "x", [], {}, [1], {"x": 1}]
        value[field] = chance.choice([w for w in wrong if field != "config" or not isinstance(w, dict)])
        path.write_bytes(encode_json(value))
        with pytest.raises(QuantascopeError):
            Run.open(small_copy).row_set().unit_rows()
        path.write_bytes(good)
