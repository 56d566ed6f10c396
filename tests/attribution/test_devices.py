import numpy as np
import pytest
import torch

from quantascope.attribution.devices import Arrivals, on_device

CPU = torch.device("cpu")


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
