"""Older runs as today's code wants them. Stored bytes are never changed: a plan is brought up to date as it is read.

Schema 1: plans without a version of their own, whose projections this version does not make any more.
Schema 2: plans say their version, how each block was found and what was asked for in full; records carry their plan's
fingerprint.
"""

from typing import Any

from ..errors import DamagedRunError, RunMismatchError

SCHEMA_VERSION = 2
"""What this version writes."""


def require_readable(version: Any, name: str) -> None:  # noqa: ANN401 - whatever the file says
    """RunMismatchError, with both versions, for a run of a newer schema."""
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise DamagedRunError(f"{name} is damaged: its schema version is {version!r}.")
    if version > SCHEMA_VERSION:
        raise RunMismatchError(
            f"{name} has schema version {version}, this quantascope reads up to {SCHEMA_VERSION}: "
            "install a newer quantascope."
        )


def plan_version(plan: dict[str, Any]) -> int:
    """The schema under which a row set was planned."""
    version: int = plan.get("schema_version", 1)
    return version


def upgrade_plan(plan: dict[str, Any]) -> dict[str, Any]:
    """A stored plan with all that today's code asks of one. One of the current schema is returned as it is."""
    return _from_1(plan) if plan_version(plan) == 1 else plan


def _from_1(plan: dict[str, Any]) -> dict[str, Any]:
    """Blocks shared equally, each a linear map found by its tap; no preconditioner, and no files beside the plan."""
    request = {"shares": "equal", "seed": plan.get("projection", {}).get("seed", 0), "precondition": "none"}
    selection = {"loss_reduction": "mean", "group_by": None}
    blocks = [{"kind": "linear", "found_by": "tap"} | block for block in plan["blocks"]]
    filled = {"request": request | plan.get("request", {}), "selection": selection | plan.get("selection", {})}
    return {"preconditioner": "none", "files": {}} | plan | filled | {"blocks": blocks}
