"""A ledger as one HTML page without scripts: the flows between kinds as a picture, the matrix, and the time course.

All names are untrusted and escaped. Knows sheets; nothing of runs.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from ...attribution.ledger import BalanceSheet, LossSheet
from ...attribution.ledger.sheets import Course
from ...errors import ConfigurationError

_HELPED, _HURT = "#1a7f5a", "#b4541a"
_WIDTH, _ROW, _SIDE = 760, 26, 210
_THICKEST = 18.0
_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 12px; }
th, td { padding: 2px 6px; text-align: right; } th[scope=row] { text-align: left; }
figure { margin: 2rem 0; overflow-x: auto; } figcaption { max-width: 46rem; }
svg text { font: 12px system-ui, sans-serif; fill: currentColor; }
"""


def flow_page(
    name: str, balance: BalanceSheet, losses: LossSheet | None, course: Course | None = None, *, num_flows: int = 40
) -> str:
    """The whole page; without losses it has the weights alone."""
    title = f"Ledger {escape(name)}"
    summary = (
        f"<p>{balance.num_steps:,} steps. An account of the training as it was, not of what would have been without a "
        f"kind. Residual: {balance.residual:.1e} of the weights' change.</p>"
    )
    parts = [
        f"<h1>{title}</h1>",
        summary,
        _weights(balance),
    ]
    if losses is not None and len(losses.steps) > 1:
        parts += [_flows(losses, num_flows), _matrix(losses), _losses_over_time(losses)]
    if course is not None and len(course.steps) > 1:
        parts.append(_course(balance, course))
    return _page(title, parts)


def flows_page(title: str, flows: Sequence[tuple[str, str, float]], meaning: str) -> str:
    """A page of chosen flows alone: by whom, whose loss, and by how much in nats; `meaning` says of what they are."""
    return _page(escape(title), [f"<h1>{escape(title)}</h1>", _picture(flows, meaning)])


def write_page(path: str, page: str) -> None:
    """Write a page; ConfigurationError where that cannot be."""
    target = Path(path)
    if not target.parent.is_dir():
        raise ConfigurationError(f"{target.parent} is not a folder: make it, or choose another place for --html.")
    try:
        target.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{target} cannot be written ({error.strerror}): choose another place.") from error


def strongest_flows(losses: LossSheet, count: int) -> list[tuple[str, str, float]]:
    """Off the diagonal: by whom, whose loss, and by how much in nats; the strongest first."""
    found = [
        (account, kind, float(losses.matrix[i, j]))
        for i, kind in enumerate(losses.kinds)
        for j, account in enumerate(losses.accounts)
        if account != kind
    ]
    return sorted(found, key=lambda flow: -abs(flow[2]))[:count]


def _page(title: str, parts: Sequence[str]) -> str:
    """The title is escaped already."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    return (
        f'<!doctype html><html lang="en"><head>{head}<style>{_STYLE}</style></head><body>{"".join(parts)}</body></html>'
    )


def _flows(losses: LossSheet, count: int) -> str:
    flows = strongest_flows(losses, count)
    meaning = f"the {len(flows)} largest entries between different kinds"
    order = (
        [a for a in losses.accounts if any(f[0] == a for f in flows)],
        [k for k in losses.kinds if any(f[1] == k for f in flows)],
    )
    return f"<h2>Who changed whose loss</h2>{_picture(flows, meaning, order)}"


def _picture(
    flows: Sequence[tuple[str, str, float]], meaning: str, order: tuple[list[str], list[str]] | None = None
) -> str:
    """The flows from the left to the right, the first ones on top; `order` is of the names on both sides."""
    left, right = order or (sorted({who for who, _, _ in flows}), sorted({whose for _, whose, _ in flows}))
    largest = max((abs(value) for _, _, value in flows), default=1.0) or 1.0
    height = _ROW * (max(len(left), len(right), 1) + 1)
    y_left = {a: _ROW * (i + 1) for i, a in enumerate(left)}
    y_right = {k: _ROW * (i + 1) for i, k in enumerate(right)}
    middle, end = _WIDTH / 2, _WIDTH - _SIDE
    bands = [
        f'<path d="M{_SIDE} {y_left[a]} C{middle} {y_left[a]} {middle} {y_right[k]} {end} {y_right[k]}" fill="none" '
        f'stroke="{_HELPED if value < 0 else _HURT}" stroke-width="{max(0.7, _THICKEST * abs(value) / largest):.2f}" '
        f'stroke-opacity="0.55"><title>{escape(a)} → {escape(k)}: {1000 * value:+.1f} thousandths of a nat</title>'
        "</path>"
        for a, k, value in reversed(flows)
    ]
    names = [
        f'<text x="{_SIDE - 8}" y="{y + 4}" text-anchor="end">{escape(_short(a))}</text>' for a, y in y_left.items()
    ]
    names += [f'<text x="{end + 8}" y="{y + 4}">{escape(_short(k))}</text>' for k, y in y_right.items()]
    caption = (
        "From the data on the left to the held-out loss on the right: green lowered it, brown raised it; "
        f"{meaning}, as wide as they are large (the widest: "
        f"{1000 * largest:.1f} thousandths of a nat)."
    )
    picture = _svg(height, bands + names)
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def _matrix(losses: LossSheet) -> str:
    largest = float(np.abs(losses.matrix).max()) or 1.0
    head = "".join(f'<th scope="col">{escape(_short(a, 12))}</th>' for a in (*losses.accounts, "change", "residual"))
    body = []
    for kind, row, total, left in zip(losses.kinds, losses.matrix, losses.total, losses.residual, strict=True):
        cells = "".join(
            f'<td style="background:color-mix(in srgb, {_HELPED if value < 0 else _HURT} '
            f'{100 * (abs(value) / largest) ** 0.5 * 0.6:.0f}%, transparent)">{1000 * value:.1f}</td>'
            for value in row
        )
        cells += f"<td>{1000 * total:.1f}</td><td>{1000 * left:.1f}</td>"
        body.append(f'<tr><th scope="row">{escape(kind)}</th>{cells}</tr>')
    return (
        f"<h2>The account matrix</h2><figure><table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(body)}"
        "</tbody></table><figcaption>Change of the row's held-out loss by the column's data, in thousandths of a nat."
        "</figcaption></figure>"
    )


def _weights(balance: BalanceSheet) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(a)}</th><td>{norm:.4g}</td><td>{100 * share:.1f} %</td><td>{cosine:.3f}</td></tr>'
        for a, norm, share, cosine in zip(balance.accounts, balance.norms, balance.shares, balance.cosines, strict=True)
    )
    head = "".join(f'<th scope="col">{text}</th>' for text in ("", "norm", "share", "cosine"))
    return f"<h2>Who moved the weights</h2><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _losses_over_time(losses: LossSheet) -> str:
    lines = {kind: losses.losses[:, i] for i, kind in enumerate(losses.kinds)}
    return f"<h2>Held-out losses</h2>{_chart(losses.steps, lines, 'nats')}"


def _course(balance: BalanceSheet, course: Course) -> str:
    along = course.along.sum(1).cumsum(0)
    lines = {a: np.concatenate([[0.0], along[:, i]]) for i, a in enumerate(balance.accounts)}
    caption = "length along each period's own change, added up"
    return f"<h2>Who moved the weights, over time</h2>{_chart(course.steps, lines, caption)}"


def _chart(steps: np.ndarray, lines: dict[str, np.ndarray], caption: str) -> str:
    height, bottom = 260, 230
    values = np.concatenate(list(lines.values()))
    low, high = float(min(values.min(), 0)), float(max(values.max(), 1e-9))
    x = 50 + (_WIDTH - _SIDE - 60) * (steps - steps[0]) / max(float(steps[-1] - steps[0]), 1.0)
    paths = []
    for number, (name, line) in enumerate(lines.items()):
        y = bottom - (bottom - 15) * (line - low) / max(high - low, 1e-12)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        hue = 360 * number / len(lines)
        paths.append(
            f'<polyline points="{points}" fill="none" stroke="hsl({hue:.0f} 55% 48%)" stroke-width="1.5"><title>'
            f"{escape(name)}</title></polyline>"
        )
    axis = (
        f'<text x="0" y="20">{high:.3g}</text><text x="0" y="{bottom}">{low:.3g}</text>'
        f'<text x="50" y="{height - 8}">step {int(steps[0])}</text>'
        f'<text x="{_WIDTH - _SIDE}" y="{height - 8}" text-anchor="end">{int(steps[-1]):,}</text>'
    )
    keys = "".join(
        f'<text x="{_WIDTH - _SIDE + 8}" y="{20 + 14 * i}" style="fill:hsl({360 * i / len(lines):.0f} 55% 48%)">'
        f"{escape(_short(name, 28))}</text>"
        for i, name in enumerate(lines)
    )
    tall = max(height, 30 + 14 * len(lines))
    return f"<figure>{_svg(tall, [axis, *paths, keys])}<figcaption>{escape(caption)}</figcaption></figure>"


def _svg(height: int, parts: Sequence[str]) -> str:
    size = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    return f'<svg {size} role="img">{"".join(parts)}</svg>'


def _short(name: str, length: int = 30) -> str:
    return name if len(name) <= length else f"…{name[1 - length :]}"


def flow_lines(losses: LossSheet, count: int) -> Sequence[str]:
    """The strongest flows as lines of text."""
    return [
        f"  {account} {'helped' if value < 0 else 'hurt'} {kind}: {1000 * value:+.1f}"
        for account, kind, value in strongest_flows(losses, count)
    ]
