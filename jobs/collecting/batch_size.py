"""How many tokens go through the model together: found while planning, on the model, device and projection at hand.

Memory decides: two windows are tried, and what they take is extrapolated to half of what a worker has left beside its
weights. On a GPU larger batches are then timed until they are hardly quicker. On a CPU it is known where that is
(benchmarks/batch.py), so nothing is timed there, what a worker has is its part of the whole memory, and what a window
takes is what autograd's graph keeps: one machine gives one number, however busy it is.

The number is a power of two, and part of the plan: it decides how numbers are rounded. A worker whose memory does not
suffice halves it (worker.py). Knows batches by their numbers of windows and tokens alone.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

Work = Callable[[int, int], object]
"""Computes the rows of so many windows of so many tokens each."""

_SHARE = 0.5
"""Part of a worker's free memory that a batch may take: the rest is for what the trial does not show."""
_LEAST, _MOST_GPU = 64, 65_536
_PER_THREAD, _MOST_CPU = 512, 2048
"""Tokens on a CPU that larger batches are hardly quicker than, for each thread of a worker and at most."""
_GAIN = 1.1
"""A batch twice as large has to be quicker by this factor, per token, to be worth it."""
_TRIAL_SECONDS = 2.0
"""No larger batch is tried once one takes as long."""
_CPU_OPERATIONS = 4e10
"""What a window of the trial may cost on a CPU, about a second's work: tokens are left out beyond it."""
_WINDOWS = 2


def find_batch_tokens(work: Work, model: nn.Module, *, window_tokens: int, row_bytes: int, num_threads: int) -> int:
    """A power of two: padded tokens of one batch, of one window at least.

    `row_bytes` is what a token may take besides, as a row of its own; `num_threads` are those of a worker.
    """
    weights = _weight_bytes(model)
    kinds = {device.type for device in weights}
    if kinds == {"cuda"}:
        return _on_gpus(work, weights, window_tokens=window_tokens, row_bytes=row_bytes)
    if kinds != {"cpu"}:
        return _PER_THREAD  # of other devices torch keeps no account
    device = next(iter(weights))
    operations = 4 * sum(p.numel() for p in model.parameters())
    length = min(window_tokens, max(16, int(_CPU_OPERATIONS / operations)))
    taken = graph_bytes(lambda: work(_WINDOWS, length), model) / (_WINDOWS * length)
    num_workers = max(1, (os.cpu_count() or 1) // num_threads)
    room = {device: memory_bytes() / num_workers - weights[device]}
    return fitting({device: taken + row_bytes}, room, most=min(_PER_THREAD * num_threads, _MOST_CPU))


def _on_gpus(work: Work, weights: Mapping[torch.device, int], *, window_tokens: int, row_bytes: int) -> int:
    torch.cuda.empty_cache()  # what this process holds without need is free for a worker
    try:
        taken = _peak_bytes(lambda: work(_WINDOWS, window_tokens), weights)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return _LEAST
    tokens = _WINDOWS * window_tokens
    # a worker of its own will hold the weights once more
    room = {device: torch.cuda.mem_get_info(device)[0] - size for device, size in weights.items()}
    most = fitting({d: taken[d] / tokens + row_bytes for d in weights}, room, most=_MOST_GPU)

    def seconds(batch_tokens: int) -> float:
        windows = max(1, batch_tokens // window_tokens)
        return _seconds(lambda: work(windows, min(window_tokens, batch_tokens)), weights)

    found = plateau(seconds, first=min(most, max(1024, _power_below(window_tokens))), most=most)
    torch.cuda.empty_cache()
    return found


def fitting(taken: Mapping[torch.device, float], room: Mapping[torch.device, float], *, most: int) -> int:
    """The largest power of two of tokens whose bytes (`taken` per token) fit in a share of each device's room."""
    tokens = min((_SHARE * room[device] / size for device, size in taken.items() if size), default=most)
    return _power_below(min(max(tokens, _LEAST), most))


def plateau(seconds: Callable[[int], float], *, first: int, most: int) -> int:
    """The smallest power of two from `first` on after which a batch twice as large is hardly quicker per token."""
    chosen, spent = first, seconds(first)
    while 2 * chosen <= most and spent < _TRIAL_SECONDS:
        try:
            more = seconds(2 * chosen)
        except torch.OutOfMemoryError:
            break
        if 2 * spent < _GAIN * more:
            break
        chosen, spent = 2 * chosen, more
    return chosen


def graph_bytes(run: Callable[[], object], model: nn.Module) -> int:
    """What autograd keeps for backward passes while `run` runs, in bytes; weights are not counted."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept.values())


def memory_bytes() -> int:
    """The memory of this machine, or of the container that this process is in, if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text(encoding="ascii")))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return total


def _weight_bytes(model: nn.Module) -> dict[torch.device, int]:
    """By device."""
    found: dict[torch.device, int] = {}
    for parameter in model.parameters():
        found[parameter.device] = found.get(parameter.device, 0) + parameter.numel() * parameter.element_size()
    return found


def _peak_bytes(run: Callable[[], object], devices: Iterable[torch.device]) -> dict[torch.device, int]:
    """By GPU, what a run allocates at its greatest beyond what there was: torch's own account."""
    before = {}
    for device in devices:
        torch.cuda.reset_peak_memory_stats(device)
        before[device] = torch.cuda.memory_allocated(device)
    run()
    return {device: torch.cuda.max_memory_allocated(device) - bytes_ for device, bytes_ in before.items()}


def _seconds(run: Callable[[], object], devices: Iterable[torch.device]) -> float:
    """The better of two, with the devices waited for."""
    spent = []
    for _ in range(2):
        start = time.perf_counter()
        run()
        for device in devices:
            torch.cuda.synchronize(device)
        spent.append(time.perf_counter() - start)
    return min(spent)


def _power_below(number: float) -> int:
    """The largest power of two that is no larger."""
    return 1 << (int(number).bit_length() - 1)
