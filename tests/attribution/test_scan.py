"""The exact scan against brute force in float64: ties, refused rows, more neighbours than rows, zero rows."""

import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantascope.attribution.search import best as nearest_best
from quantascope.attribution.search.coarse import Coarse, rows_per_tile
from quantascope.attribution.search.scan import Chunk, scan
from quantascope.errors import ConfigurationError

PRECISIONS = ("bfloat16", "float32")


def brute_force(rows, keep, queries, k):
    """Scores and rows, best first, equal scores by row; every sum is correctly rounded."""
    fine = np.flatnonzero(keep & np.isfinite(rows).all(axis=1))
    wide, asked = rows[fine].astype(np.float64), queries.astype(np.float64)
    scores = np.array([[math.fsum(q * row) for row in wide] for q in asked], np.float32).reshape(len(asked), len(fine))
    order = np.lexsort((np.broadcast_to(fine, scores.shape), -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), fine[order]


def chunks_of(rows, keep, sizes, *, known=False):
    """`known`: chunks say which rows are finite and how long they are at most, as a run's do."""
    first, sizes = 0, iter(sizes)
    while first < len(rows):
        last = first + next(sizes, len(rows))
        part, kept = rows[first:last], keep[first:last]
        if known:
            norms = np.linalg.norm(part.astype(np.float64), axis=1)
            kept = kept & np.isfinite(norms)
        yield Chunk(first, part, kept, float(norms[kept].max(initial=0)) if known else None)
        first = last


@contextmanager
def little_room():
    """Tiles, pieces and waiting room so small that few rows reach every branch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quantascope.attribution.search.scan.rows_per_tile", lambda *_: 5)
        for name, value in {"_GATHERED": 3, "_PIECE": 2, "_LEAST_WAITING": 4, "_MAX_WAITING": 6}.items():
            patch.setattr(nearest_best, name, value)
        yield


@st.composite
def problems(draw):
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    num_rows, dim, num_queries = draw(st.integers(0, 40)), draw(st.integers(1, 24)), draw(st.integers(1, 4))
    kind = draw(st.sampled_from(["normal", "integers", "copies", "wide range"]))
    rows = generator.standard_normal((num_rows, dim))
    queries = generator.standard_normal((num_queries, dim))
    if kind == "integers":  # ties abound, and every sum is exact
        rows, queries = np.rint(rows), np.rint(queries)
    elif kind == "copies" and num_rows:
        rows = rows[generator.integers(0, 3, num_rows) % num_rows]
    elif kind == "wide range":
        rows *= 10.0 ** generator.uniform(-6, 3, (num_rows, 1))
        queries *= 10.0 ** generator.uniform(-30, 30, (num_queries, 1))
    rows = rows.astype(draw(st.sampled_from([np.float16, np.float32])))
    for value in draw(st.sets(st.sampled_from([0.0, np.nan, np.inf, -np.inf]))):
        rows[generator.random(num_rows) < 0.2] = value
    keep = generator.random(num_rows) < draw(st.sampled_from([0.0, 0.7, 1.0]))
    sizes = draw(st.lists(st.integers(1, 17), max_size=8))
    return rows, keep, queries.astype(np.float32), draw(st.one_of(st.integers(1, 3), st.integers(1, 50))), sizes


@pytest.mark.parametrize("precision", PRECISIONS)
@settings(max_examples=150, deadline=None)
@given(problem=problems(), num_threads=st.integers(1, 3), known=st.booleans())
def test_the_scan_is_brute_force(precision, problem, num_threads, known):
    rows, keep, queries, k, sizes = problem
    chunks = chunks_of(rows, keep, sizes, known=known)
    with little_room():
        found = scan(chunks, queries, k, precision=precision, num_threads=num_threads)
    scores, expected = brute_force(rows, keep, queries, k)
    np.testing.assert_array_equal(found.rows, expected)
    np.testing.assert_array_equal(found.scores, scores)
    assert found.num_rows == (keep & np.isfinite(rows).all(axis=1)).sum()


def planted(num_rows, dim, *, seed=0):
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((40, dim))
    rows = centres[generator.integers(0, 40, num_rows)] + generator.standard_normal((num_rows, dim))
    rows *= math.sqrt(dim) / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float16), rows[:16].astype(np.float32)


def test_precision_threads_and_chunks_do_not_change_the_answer_and_the_bound_rules_most_out():
    rows, queries = planted(20_000, 64)
    keep = np.ones(len(rows), bool)
    answers = [
        scan(chunks_of(rows, keep, sizes, known=known), queries, 10, precision=precision, num_threads=threads)
        for precision in PRECISIONS
        for known in (False, True)
        for threads, sizes in ((1, []), (2, [7_000, 11, 9_000]))
    ]
    for answer in answers:
        np.testing.assert_array_equal(answer.rows, answers[0].rows)
        np.testing.assert_array_equal(answer.scores, answers[0].scores)
        assert answer.num_settled < 0.02 * len(rows) * len(queries)
    assert np.array_equal(answers[0].rows[:, 0], np.arange(16))


@pytest.mark.parametrize(("precision", "shifted"), [("float32", False), ("bfloat16", False), ("bfloat16", True)])
@pytest.mark.parametrize("dim", [3, 64, 1000])
def test_the_bound_holds_and_is_not_idle(precision, shifted, dim):
    rows, queries = planted(500, dim, seed=dim)
    rows[1::3] *= 2.0**-8  # entries near float16's least normal number, and below
    rows[2::3] *= 2.0**-16
    coarse = Coarse(queries, precision)
    workspace = coarse.workspace(500)
    norms = workspace.load(rows)
    if shifted:
        workspace.shift(rows)
    workspace.multiply(500, np.empty(0, np.int64))
    exact = rows.astype(np.float64) @ (queries.astype(np.float64) * coarse.scale[:, None]).T
    products = workspace.values(np.arange(500 * 16)).reshape(500, 16)
    error = abs(products - exact)
    bound = np.stack([coarse.error(float(norm), shifted=shifted) for norm in norms]) + abs(products) * coarse.rounding
    assert (error <= bound).all()
    if precision == "bfloat16":  # a bound that were a thousand times too wide would rule nothing out
        assert error.max() > 0.02 * bound.max()


def test_products_that_break_the_bound_are_noticed(monkeypatch):
    rows, queries = planted(300, 32)
    monkeypatch.setattr(Coarse, "error", lambda self, _, *, shifted: np.full(self.num_queries, -1e-3))
    with pytest.raises(ConfigurationError, match="float32"):
        scan([Chunk(0, rows)], queries, 5, precision="bfloat16")


def test_rows_are_read_from_a_map_of_a_file_that_cannot_be_written(tmp_path):
    rows, queries = planted(100, 16)
    rows.tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", np.float16, "r", shape=rows.shape)
    np.testing.assert_array_equal(scan([Chunk(0, mapped)], queries, 3).rows, scan([Chunk(0, rows)], queries, 3).rows)


def test_what_cannot_be_scanned_is_refused():
    rows, queries = planted(20, 8)
    with pytest.raises(ConfigurationError, match="at least 1"):
        scan([Chunk(0, rows)], queries, 0)
    with pytest.raises(ConfigurationError, match="8 wide, 7 are expected"):
        scan([Chunk(0, rows)], queries[:, :7], 1)
    with pytest.raises(ConfigurationError, match="NaN"):
        scan([Chunk(0, rows)], np.full_like(queries, np.nan), 1)
    with pytest.raises(ConfigurationError, match="beyond float32"):
        scan([Chunk(0, np.full((3, 8), 1e30, np.float32))], queries, 1)


def test_an_error_of_the_stream_ends_the_scan_and_torch_keeps_its_threads():
    rows, queries = planted(20, 8)

    def broken():
        yield Chunk(0, rows)
        raise OSError("the disk is gone")

    before = torch.get_num_threads()
    with pytest.raises(OSError, match="gone"):
        scan(broken(), queries, 1, num_threads=2)
    assert torch.get_num_threads() == before


def test_tiles_fit_their_queries():
    assert rows_per_tile(1_024, 256) >= 1_024
    assert rows_per_tile(1_000_000, 1) * 1_000_000 < 1 << 27
