import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from quantascope.attribution.randomness import (
    random_bits,
    random_integers,
    random_normals,
    random_signs,
    random_words,
)

GOLDEN = ["0xdfb9536e44963382", "0x3740d5867dc3b483", "0x84d4a77697f448ce"]
SIGNS = "++--+++-----++-++-+++-++"
BITS = "000001010111111100101101"
INTEGERS = [565, 501, 139, 260, 889, 43, 434, 893]
NORMALS = [-1.0343446523, -2.3567110502, -0.6058053575, 1.7171881752]


def test_the_numbers_never_change():
    """Golden: a change here makes every stored row incomparable with new ones."""
    assert [hex(w) for w in random_words(0, "gpt_neox.layers.0.mlp.dense_h_to_4h", "in", 3)] == GOLDEN
    assert "".join("+" if s > 0 else "-" for s in random_signs(7, "b", "out", 24)) == SIGNS
    assert "".join(map(str, random_bits(7, "b", "dense", 24))) == BITS
    assert random_integers(7, "b", "bucket 0", 8, below=1000).tolist() == INTEGERS
    assert [round(float(z), 10) for z in random_normals(7, "b", "row", 4)] == NORMALS


def test_streams_differ_by_seed_name_and_axis_and_extend_each_other():
    words = {tuple(random_words(s, n, a, 2)) for s in (0, 1) for n in ("x", "y") for a in ("row", "column")}
    assert len(words) == 8
    assert random_words(3, "n", "row", 5)[:2].tolist() == random_words(3, "n", "row", 2).tolist()
    assert random_normals(3, "n", "row", 8)[:3].tolist() == random_normals(3, "n", "row", 3).tolist()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(start=st.integers(0, 400), count=st.integers(0, 200))
def test_any_stretch_of_a_stream_can_be_made_by_itself(start, count):
    assert (random_words(3, "n", "row", count, start=start) == random_words(3, "n", "row", 600)[start:][:count]).all()
    assert (random_bits(3, "n", "row", count, start=start) == random_bits(3, "n", "row", 600)[start:][:count]).all()


def test_bits_and_integers_are_uniform():
    """Counts of 2¹⁶ draws within 5 standard deviations of a binomial's."""
    count = 2**16
    assert abs(int(random_bits(1, "n", "a", count).sum()) - count / 2) < 5 * np.sqrt(count / 4)
    counts = np.bincount(random_integers(1, "n", "a", count, below=7))
    assert len(counts) == 7
    assert np.abs(counts - count / 7).max() < 5 * np.sqrt(count * 6 / 49)


def test_normals_have_the_moments_and_tails_of_normals_and_no_correlation_within_their_pairs():
    """2¹⁶ draws within 5 standard errors: 1/√n, √(2/n), √(96/n) of moments, √(2/n) of correlation."""
    z = random_normals(1, "n", "a", 2**16)
    root = len(z) ** 0.5
    assert abs(z.mean()) < 5 / root
    assert abs((z**2).mean() - 1) < 5 * 2**0.5 / root
    assert abs((z**4).mean() - 3) < 5 * 96**0.5 / root
    assert abs((z[::2] * z[1::2]).mean()) < 5 * 2**0.5 / root
    assert np.isfinite(z).all()
