import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from quantascope.attribution.devices import Arrivals, on_device
from quantascope.attribution.engine import GradientEngine
from quantascope.attribution.losses import TokenBatch, mean_losses, token_losses
from quantascope.attribution.projection import TensorSketch
from quantascope.jobs.models.unpacked import one_text_per_row
from tests.tiny import tiny_neox

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


def test_what_arrives_is_what_was_added_in_its_order():
    arrivals = Arrivals()
    parts = [(torch.arange(3.0) + i, torch.tensor(float(i))) for i in range(4)]
    for part in parts:
        arrivals.add(*part)
    found = arrivals.all()
    assert [[t.tolist() for t in part] for part in found] == [[t.tolist() for t in part] for part in parts]
    assert arrivals.all() == []


def test_arrays_keep_their_numbers_and_types():
    ids = np.array([[3, 1], [2, 0]])
    assert on_device(ids, CPU).equal(torch.tensor([[3, 1], [2, 0]]))
    assert on_device(np.array([True, False]), CPU).dtype == torch.bool


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_neither_way_waits_for_queued_work():
    device = torch.device("cuda")
    arrivals = Arrivals()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        values = on_device(np.arange(5.0), device)
        arrivals.add(values * 2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert arrivals.all()[0][0].tolist() == [0, 2, 4, 6, 8]


@pytest.mark.parametrize(
    "architectures", [("llama",), pytest.param(("gpt2", "mamba"), marks=pytest.mark.slow)], ids=str
)
def test_rows_ask_a_device_for_nothing_once_blocks_are_proved(architectures):
    program = [sys.executable, "-m", "tests.attribution.without_waiting", *architectures]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split("\n")[:-1] == [
        f"{a} {p} waits for nothing" for a in architectures for p in ("TensorSketch", "TwoSided")
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_rows_on_a_gpu_are_queued_without_a_wait():
    device = torch.device("cuda")
    engine = GradientEngine(tiny_neox(vocab_size=50).to(device), TensorSketch(dim_per_block=16))
    ids = torch.randint(0, 50, (3, 12), generator=torch.Generator().manual_seed(1))
    example, position = torch.tensor([0, 0, 1, 2]), torch.tensor([3, 9, 5, 11])
    batch = TokenBatch(ids=ids.to(device), example=example.to(device), position=position.to(device))
    engine.rows(batch, token_losses, example, num_examples=3)  # proves, and finds out what is found out once
    torch.cuda.set_sync_debug_mode("error")
    try:
        with one_text_per_row():
            engine.rows(batch, token_losses, example, num_examples=3)
            engine.rows(batch, mean_losses, num_examples=3)
            engine.contributions(batch, mean_losses, num_examples=3, num_positions=12)
    finally:
        torch.cuda.set_sync_debug_mode("default")
