"""Blocks of bounded time: rows per block follow the model's size, and what cannot be cut is said."""

import logging

import pytest

from quantascope.jobs.collecting.block_time import bounded_rows, nominal_seconds, warn_of_long_blocks


def plan(unit_type, *, num_parameters, rows_per_block, device_type="cpu", window_tokens=1024):
    return {
        "unit_type": unit_type,
        "window_tokens": window_tokens,
        "model": {"num_parameters": num_parameters},
        "rows_per_block": rows_per_block,
        "device_type": device_type,
    }


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("num_parameters", [10**6, 3 * 10**7, 10**9, 7 * 10**9, 7 * 10**10])
def test_a_block_takes_twenty_seconds_or_is_one_unit(num_parameters, device):
    seconds = nominal_seconds(num_parameters, 1024, device)
    rows = bounded_rows(seconds, 2000)
    assert rows == 1 or rows * seconds <= 20
    assert rows == 2000 or (rows + 1) * seconds > 20


def test_a_larger_model_has_smaller_blocks():
    small, large = (bounded_rows(nominal_seconds(n, 1024, "cuda"), 1e9) for n in (10**9, 7 * 10**9))
    assert 6 * large <= small <= 8 * large


@pytest.mark.parametrize(
    ("values", "num_windows", "said"),
    [
        (plan("window", num_parameters=7 * 10**9, rows_per_block=1), 1, "--window-tokens"),
        (plan("window", num_parameters=7 * 10**9, rows_per_block=60, device_type="cuda"), 1, None),
        (plan("window", num_parameters=7 * 10**9, rows_per_block=6000, device_type="cuda"), 1, "--rows-per-block"),
        (plan("token-contribution", num_parameters=10**6, rows_per_block=60_000), 1, None),
        (plan("group", num_parameters=10**6, rows_per_block=1), 5, None),
        (plan("group", num_parameters=10**6, rows_per_block=1), 5_000, "5,000 windows"),
    ],
)
def test_a_block_beyond_the_notice_of_spot_machines_is_said(values, num_windows, said, caplog):
    with caplog.at_level(logging.WARNING):
        warn_of_long_blocks(values, num_windows)
    assert bool(caplog.text) == (said is not None)
    assert said is None or said in caplog.text
