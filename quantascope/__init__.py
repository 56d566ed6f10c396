"""The name people import: `connect`, the version, the errors. Everything heavy waits until it is used."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api.client import connect as connect

__all__ = ["__version__", "connect"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562 hands out whatever the name stands for
    if name == "connect":
        from .api.client import connect

        return connect
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
