"""The batch size that a plan finds by itself: what fits, where larger batches stop to pay, and that plans keep it."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantascope.jobs.collecting import batch_size, plan
from quantascope.jobs.collecting.batch_size import find_batch_tokens, fitting, graph_bytes, memory_bytes, plateau
from quantascope.jobs.collecting.collect import collect
from quantascope.jobs.collecting.config import RowConfig
from quantascope.jobs.workers.ray_session import RayOptions
from quantascope.storage import Run
from tests.here import workers_here
from tests.tiny import tiny_neox

ONE = RayOptions(num_workers=1)
GPUS = [torch.device("cuda", 0), torch.device("cuda", 1)]


@given(
    st.lists(st.tuples(st.floats(1, 1e7), st.floats(0, 1e12)), min_size=1, max_size=2), st.sampled_from([512, 65_536])
)
def test_the_largest_power_of_two_that_takes_half_of_each_devices_room(devices, most):
    taken = {GPUS[i]: size for i, (size, _) in enumerate(devices)}
    room = {GPUS[i]: free for i, (_, free) in enumerate(devices)}

    def fits(tokens):
        return all(2 * tokens * taken[device] <= room[device] for device in taken)

    found = fitting(taken, room, most=most)
    assert found.bit_count() == 1
    assert 64 <= found <= most
    assert fits(found) or found == 64
    assert found == most or not fits(2 * found)


def test_batches_grow_until_twice_as_many_tokens_are_hardly_quicker():
    asked = []

    def seconds(tokens):  # a fixed cost, and one per token: at 4,096 twice as many save 9 %, which is too little
        asked.append(tokens)
        return 1e-3 + 1.2e-6 * tokens

    assert plateau(seconds, first=256, most=65_536) == 4096
    assert asked == [256, 512, 1024, 2048, 4096, 8192]
    assert plateau(seconds, first=256, most=1024) == 1024


def test_a_batch_that_does_not_fit_or_a_slow_one_ends_the_search():
    def small_device(tokens):
        if tokens > 1024:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1.0

    assert plateau(small_device, first=256, most=65_536) == 1024
    assert plateau(lambda tokens: 1.9 if tokens < 2048 else 2.5, first=256, most=65_536) == 2048


def test_what_a_graph_keeps_is_counted_once_and_without_weights():
    model = torch.nn.Linear(32, 32, bias=False).requires_grad_(False)
    x = torch.randn(10, 32, requires_grad=True)

    def run():
        y = model(x).exp()  # keeps its output, and the map its weight
        (y * y.detach()).sum().backward()  # keeps the same storage again

    assert graph_bytes(run, model) == 10 * 32 * 4


def windows_of(model):
    def work(num_windows, num_tokens):
        ids = torch.zeros(num_windows, num_tokens, dtype=torch.long)
        embedded = model.get_input_embeddings()(ids).requires_grad_()
        model(inputs_embeds=embedded).logits.sum().backward()

    return work


def test_a_cpus_batch_depends_on_the_machine_and_not_on_what_it_does_meanwhile(monkeypatch):
    model = tiny_neox(width=64, layers=2).requires_grad_(False)
    sizes = {"window_tokens": 64, "row_bytes": 0, "num_threads": 1}
    for threads, tokens in ((1, 512), (2, 1024), (3, 1024), (16, 2048)):
        assert find_batch_tokens(windows_of(model), model, **sizes | {"num_threads": threads}) == tokens
    monkeypatch.setattr(batch_size.os, "cpu_count", lambda: 2)
    per_token = graph_bytes(lambda: windows_of(model)(2, 64), model) / 128
    weights = sum(p.numel() * 4 for p in model.parameters())
    for tokens in (64, 128, 256):
        monkeypatch.setattr(batch_size, "memory_bytes", lambda tokens=tokens: 2 * (2.1 * tokens * per_token + weights))
        assert find_batch_tokens(windows_of(model), model, **sizes) == tokens
    monkeypatch.setattr(batch_size, "memory_bytes", lambda: 0)
    assert find_batch_tokens(windows_of(model), model, **sizes) == 64


def test_memory_is_that_of_the_machine_or_of_its_container(tmp_path, monkeypatch):
    whole = memory_bytes()
    assert 1e8 < whole < 1e15
    limit = tmp_path / "limit"

    def in_container(path):
        return limit if str(path).endswith("memory.max") else tmp_path / "none"

    monkeypatch.setattr(batch_size, "Path", in_container)
    for content, wanted in (("1000000\n", 1_000_000), ("max\n", None), (str(10**18), None)):
        limit.write_text(content)
        assert (memory_bytes() < whole) == (wanted is not None)
        assert wanted is None or memory_bytes() == wanted


class PretendGpus:
    """Two GPUs' accounts, and a clock; the first one does the work."""

    def __init__(self, monkeypatch, *, free, bytes_per_token, seconds):
        self.free, self.bytes_per_token, self.seconds = free, bytes_per_token, seconds
        self.peak, self.now, self.batches = 0, 0.0, []
        for name in ("reset_peak_memory_stats", "synchronize", "empty_cache"):
            monkeypatch.setattr(torch.cuda, name, lambda *_: None)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (self.free[device.index], 10**12))
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1000)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1000 + (1 - device.index) * self.peak)
        monkeypatch.setattr(batch_size, "time", SimpleNamespace(perf_counter=lambda: self.now))
        self.model = SimpleNamespace(
            parameters=lambda: [SimpleNamespace(device=d, numel=lambda: 25_000, element_size=lambda: 4) for d in GPUS]
        )

    def __call__(self, num_windows, num_tokens):
        tokens = num_windows * num_tokens
        self.peak = tokens * self.bytes_per_token
        if self.peak > self.free[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.now += self.seconds(tokens)
        self.batches.append(tokens)

    def find(self, *, row_bytes=0):
        return find_batch_tokens(self, self.model, window_tokens=1024, row_bytes=row_bytes, num_threads=1)


def test_a_gpus_batch_is_what_fits_beside_a_workers_weights_and_still_pays(monkeypatch):
    linear = {"bytes_per_token": 1000, "seconds": lambda tokens: 1e-6 * tokens + 1e-2}
    gpus = PretendGpus(monkeypatch, free=[10**9, 10**9], **linear)
    assert gpus.find() == 65_536
    assert gpus.batches == [2048, *(t for n in range(7) for t in [1024 * 2**n] * 2)]
    # a row of each token besides: half of the room for 60,000 bytes of each, of which the second device takes 59,000
    assert gpus.find(row_bytes=59_000) == 8192
    assert PretendGpus(monkeypatch, free=[2 * 10**7 + 10**5, 10**9], **linear).find() == 8192
    assert PretendGpus(monkeypatch, free=[2 * 10**7 + 10**5 - 10**7, 10**9], **linear).find() == 4096
    flat = {"bytes_per_token": 1000, "seconds": lambda tokens: 1e-6 * tokens}
    assert PretendGpus(monkeypatch, free=[10**9, 10**9], **flat).find() == 1024


def test_a_gpu_that_two_windows_do_not_fit_on_gets_the_smallest_batch(monkeypatch):
    gpus = PretendGpus(monkeypatch, free=[10**6, 10**9], bytes_per_token=1000, seconds=lambda tokens: 1e-3)
    assert gpus.find() == 64
    assert gpus.batches == []


def test_a_row_set_goes_on_with_the_batches_of_its_plan_whatever_would_be_found_now(
    tiny_collection, tmp_path, monkeypatch
):
    rows = RowConfig(dim=128, rows_per_block=8)
    with workers_here():
        monkeypatch.setattr(plan, "find_batch_tokens", lambda *_, **__: 64)
        collect(tiny_collection(tmp_path / "run", rows=rows), ONE)
        monkeypatch.setattr(plan, "find_batch_tokens", lambda *_, **__: 256)
        assert collect(tiny_collection(tmp_path / "run", rows=rows), ONE).rows_here == 0
        collect(tiny_collection(tmp_path / "run", rows=rows, unit_type="window"), ONE)
    run = Run.open(tmp_path / "run")
    assert run.row_set("token-loss").plan["batch_tokens"] == 64
    assert run.row_set("window").plan["batch_tokens"] == 256


def test_batches_that_are_asked_for_are_not_tried(tiny_collection, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError

    monkeypatch.setattr(plan, "find_batch_tokens", refuse)
    with workers_here():
        collect(tiny_collection(tmp_path / "run", rows=RowConfig(dim=128, batch_tokens=96), max_units=8), ONE)
    assert Run.open(tmp_path / "run").row_set("token-loss").plan["batch_tokens"] == 96


@pytest.mark.parametrize("unit_type", ["token-loss", "window", "token-contribution"])
def test_two_plans_of_one_machine_have_the_same_batches(unit_type, tiny_collection, tmp_path):
    rows = RowConfig(dim=128, rows_per_block=8)
    with workers_here():
        for name in ("one", "two"):
            collect(tiny_collection(tmp_path / name, rows=rows, unit_type=unit_type, max_units=8), ONE)
    plans = [Run.open(tmp_path / name).row_set(unit_type).plan for name in ("one", "two")]
    assert plans[0] == plans[1]
    assert plans[0]["batch_tokens"] == 512
