"""What checks the shapes in attribution's signatures while tests run. Knows beartype."""

from collections.abc import Callable
from typing import Any

from beartype import beartype


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its annotations checked at each call; closures stay as they are.

    A closure is decorated anew whenever it is made, which in the engine is once per module and forward pass and takes
    far longer than what it does.
    """
    return function if "<locals>" in getattr(function, "__qualname__", "") else beartype(function)
