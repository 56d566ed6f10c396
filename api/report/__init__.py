"""The exported report: one HTML file that needs no network."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .payload import Payload as Payload
    from .render import render_report as render_report

__all__ = ["Payload", "render_report"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562 hands out whatever the name stands for
    if name == "Payload":
        from .payload import Payload

        return Payload
    if name == "render_report":
        from .render import render_report

        return render_report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
