from quantascope.attribution.randomness import random_signs, random_words

GOLDEN = ["0xdfb9536e44963382", "0x3740d5867dc3b483", "0x84d4a77697f448ce"]
SIGNS = "++--+++-----++-++-+++-++"


def test_the_numbers_never_change():
    """Golden: a change here makes every stored row incomparable with new ones."""
    assert [hex(w) for w in random_words(0, "gpt_neox.layers.0.mlp.dense_h_to_4h", "in", 3)] == GOLDEN
    assert "".join("+" if s > 0 else "-" for s in random_signs(7, "b", "out", 24)) == SIGNS


def test_streams_differ_by_seed_name_and_axis_and_extend_each_other():
    words = {tuple(random_words(s, n, a, 2)) for s in (0, 1) for n in ("x", "y") for a in ("in", "out")}
    assert len(words) == 8
    assert random_words(3, "n", "in", 5)[:2].tolist() == random_words(3, "n", "in", 2).tolist()
