"""What every benchmark prints: a table for people, one JSON object for machines, and an exit status from its bars."""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A figure that was asked for."""

    name: str
    value: float
    limit: float
    holds: bool


def arguments(description: str) -> argparse.ArgumentParser:
    """The flags that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="an answer in under a minute")
    parser.add_argument("--json", metavar="FILE", help="write the result as one JSON object")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    return parser


def finish(
    name: str, columns: Sequence[str], rows: Sequence[dict[str, Any]], bars: Sequence[Bar], options: argparse.Namespace
) -> None:
    """Print the table and the bars, write the JSON, and exit with 1 where a bar falls short."""
    print("  ".join(f"{c:>22}" for c in columns))
    for row in rows:
        print("  ".join(f"{_text(row.get(c)):>22}" for c in columns))
    for bar in bars:
        print(f"{'holds' if bar.holds else 'FALLS SHORT'}: {bar.name}: {bar.value:.4g} (limit {bar.limit:.4g})")
    if options.json:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip()
        hardware = f"{platform.machine()}, {options.threads} threads" + (
            f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
        )
        value = {
            "name": name,
            "commit": commit,
            "hardware": hardware,
            "date": datetime.now(UTC).date().isoformat(),
            "seed": options.seed,
            "quick": options.quick,
            "results": list(rows),
            "bars": [asdict(bar) for bar in bars],
        }
        Path(options.json).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if all(bar.holds for bar in bars) else 1)


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
