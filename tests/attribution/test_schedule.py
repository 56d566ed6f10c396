import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from quantascope.attribution.schedule import schedule_tokens
from quantascope.attribution.selection import ends_seen_trigram, low_loss, thin

UNITS = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 300)), min_size=1, max_size=40)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(UNITS, st.integers(64, 2000))
def test_every_unit_is_served_once_within_its_own_window_and_prefix(units, batch_tokens):
    window, position = (np.array(c) for c in zip(*units, strict=True))
    batches = schedule_tokens(window, position, batch_tokens=batch_tokens)
    served = np.concatenate([b.unit for b in batches])
    assert sorted(served) == list(range(len(units)))
    for batch in batches:
        assert (batch.window[batch.example] == window[batch.unit]).all()
        assert batch.length == position[batch.unit].max() + 1
        assert len(batch.window) == 1 or len(batch.window) * batch.length <= batch_tokens
        assert len(set(batch.window)) == len(batch.window)


def test_the_third_token_of_a_seen_trigram_is_known():
    tokens = np.array([1, 2, 3, 1, 2, 3, 4, 2, 3, 4], np.int32)
    assert np.flatnonzero(ends_seen_trigram(tokens)).tolist() == [5, 9]
    assert not ends_seen_trigram(np.array([1, 1], np.int32)).any()
    seen = ends_seen_trigram(tokens)
    losses = np.full(10, 0.05, np.float32)
    losses[[0, 1]] = 0.1
    assert low_loss(losses, seen, max_loss=0.1).tolist() == [2, 3, 4, 6, 7, 8]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, 6), max_size=60).map(sorted),
    st.none() | st.integers(1, 9),
    st.none() | st.integers(1, 30),
)
def test_thinning_keeps_the_limits_and_nothing_more(window, max_per_window, max_units):
    window = np.array(window, np.int64)
    kept = thin(window, max_per_window=max_per_window, max_units=max_units)
    assert (np.diff(kept) > 0).all()
    counts = np.bincount(window, minlength=7)
    most = int(np.minimum(counts, max_per_window or 10**9).sum())
    assert len(kept) == min(most, max_units or 10**9)
    if max_per_window:
        assert (np.bincount(window[kept], minlength=7) <= max_per_window).all()
