"""A model that lies on several devices has the rows of the same model on one; weights that lie nowhere are refused."""

import os
import subprocess
import sys
from pathlib import Path

import accelerate
import pytest
import torch

from quantascope.attribution.blocks import find_blocks
from quantascope.attribution.engine import GradientEngine
from quantascope.attribution.losses import TokenBatch, token_losses
from quantascope.attribution.projection import TensorSketch
from quantascope.errors import ConfigurationError
from tests.plain_loop import assert_equal_rows, plain_rows
from tests.tiny import tiny_neox

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "architectures", [("gpt2",), pytest.param(("llama", "mamba", "mixtral", "t5"), marks=pytest.mark.slow)], ids=str
)
def test_rows_are_those_of_one_device_and_nothing_meets_on_two(architectures):
    program = [sys.executable, "-m", "tests.attribution.on_two_devices", *architectures]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split("\n")[:-1] == [
        f"{a} {p} equal" for a in architectures for p in ("TensorSketch", "TwoSided", "SparseJL")
    ]


def batch_on(device):
    ids = torch.randint(0, 50, (3, 12), generator=torch.Generator().manual_seed(1))
    example, position = torch.tensor([0, 0, 1, 2]), torch.tensor([3, 9, 5, 11])
    return TokenBatch(ids=ids.to(device), example=example.to(device), position=position.to(device))


def engine_of(model):
    return GradientEngine(model, TensorSketch(dim_per_block=16), find_blocks(model, "all").blocks)


def test_accelerates_own_dispatch_to_one_device_changes_nothing():
    model = accelerate.dispatch_model(tiny_neox(vocab_size=50, dtype="float64"), {"": "cpu"})
    batch = batch_on("cpu")
    rows = engine_of(model).rows(batch, token_losses, batch.example).rows
    plain = engine_of(tiny_neox(vocab_size=50, dtype="float64"))
    assert_equal_rows(rows, plain_rows(plain, batch, token_losses))


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offloaded_weights_are_refused(where, tmp_path):
    model = tiny_neox(vocab_size=50)
    if where == "cpu":
        accelerate.cpu_offload(model, execution_device="cpu")
    else:
        accelerate.disk_offload(model, str(tmp_path), execution_device="cpu")
    with pytest.raises(ConfigurationError, match=r"parameters are on no device.*every weight in place"):
        engine_of(model)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_rows_of_a_model_spread_over_gpus_are_those_of_the_cpu(tiny_model_folder):
    from quantascope.jobs.models.model import ModelSource, load_model

    rows = []
    for device in ("spread", "cpu"):
        loaded = load_model(ModelSource(model=str(tiny_model_folder), dtype="float64", device=device))
        devices = {p.device for p in loaded.model.parameters()}
        assert (len(devices) > 1) == (device == "spread")
        for options in ({}, {"checkpoint_activations": True}):
            blocks = find_blocks(loaded.model, "all").blocks
            engine = GradientEngine(loaded.model, TensorSketch(dim_per_block=16), blocks, **options)
            batch = batch_on(engine.device)
            rows.append(engine.rows(batch, token_losses, batch.example).rows.cpu())
    for found in rows[:-1]:
        assert_equal_rows(found, rows[-1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_rows_on_a_gpu_are_those_of_the_cpu():
    rows = []
    for device in ("cuda", "cpu"):
        engine = engine_of(tiny_neox(vocab_size=50, dtype="float64").to(device))
        batch = batch_on(device)
        rows.append(engine.rows(batch, token_losses, batch.example).rows.cpu())
    assert_equal_rows(rows[0], rows[1])
