"""The edge to the Hugging Face libraries: keep them quiet, and ask once whether the hub can be reached.

Knows transformers, datasets and huggingface_hub by name only, and imports each where it is used. Knows nothing of
models, data sets or runs.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import urllib.request
import warnings
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

_NOISY_LOGGERS = ("transformers", "datasets", "huggingface_hub", "httpx", "httpx2", "fsspec", "torch")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence logs, warnings and progress bars of the Hugging Face libraries inside the block, and restore them.

    What matters in them (missing weights, pickles, remote code) is checked and raised by the caller. Python's
    warning filters belong to the process: don't enter from two threads at once.
    """
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if not are_progress_bars_disabled():
            disable_progress_bars()
            stack.callback(enable_progress_bars)
        stack.callback(_restore_levels, loggers, levels)
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        _stop_progress_bars(stack)
        yield


def _restore_levels(loggers: list[logging.Logger], levels: list[int]) -> None:
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def _stop_progress_bars(stack: contextlib.ExitStack) -> None:
    # Only libraries that are loaded can draw bars, and loading transformers for a data set would cost seconds.
    if "transformers" in sys.modules:
        import transformers.utils.logging as transformers_logging

        if transformers_logging.is_progress_bar_enabled():
            transformers_logging.disable_progress_bar()
            stack.callback(transformers_logging.enable_progress_bar)
    if "datasets" in sys.modules:
        import datasets

        if not datasets.are_progress_bars_disabled():
            datasets.disable_progress_bars()
            stack.callback(datasets.enable_progress_bars)


def hub_is_reachable() -> bool:
    """Say whether the hub's name resolves, or a proxy might reach it; False in the hub's offline mode.

    Without this question the hub's client tries for over 20 s before it says that there is no network.
    """
    import huggingface_hub.constants as hub_constants

    if hub_constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies():
        return True
    try:
        socket.getaddrinfo(urlsplit(hub_constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class where there is none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
