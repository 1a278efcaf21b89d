"""plot: the growth curves as one SVG: what an operation costs the server as a cluster grows. A flat line is what one hopes for.

In: bench/run's rows "growth", "growth of watchers", "growth of nodes". Out: the text of an SVG with a panel for each that is there.
"""

from __future__ import annotations

import math
from typing import Any

WIDTH, HEIGHT, MARGIN = 300, 220, 46
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")
# rows, what grows, the curves: field -> name
PANELS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("growth", "objects", {"get_us": "GET", "create_us": "create", "patch_us": "PATCH"}),
    ("growth of watchers", "watchers", {"delivery_us": "delivery"}),
    ("growth of nodes", "nodes", {"pod_us": "pod: create, schedule, bind"}),
)


def svg(rows: list[dict[str, Any]]) -> str:
    drawn = [(x, curves, mine) for what, x, curves in PANELS if (mine := [r for r in rows if r["what"] == what])]
    body = "".join(_panel(i * WIDTH, x, curves, mine) for i, (x, curves, mine) in enumerate(drawn))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * len(drawn)}" height="{HEIGHT}" font-family="sans-serif" font-size="11">'
            f'<rect width="100%" height="100%" fill="white"/>{body}</svg>\n')


def _panel(left: int, x: str, curves: dict[str, str], rows: list[dict[str, Any]]) -> str:
    low, high = math.log10(min(r[x] for r in rows)), math.log10(max(r[x] for r in rows))
    top = max(r[field] for r in rows for field in curves) * 1.2

    def at(row: dict[str, Any], field: str) -> tuple[float, float]:
        across = (math.log10(row[x]) - low) / ((high - low) or 1)
        return left + MARGIN + across * (WIDTH - MARGIN - 24), HEIGHT - 32 - row[field] / top * (HEIGHT - 62)

    out = [f'<text x="{left + WIDTH / 2}" y="{HEIGHT - 4}" text-anchor="middle">{x}</text>',
           f'<text x="{left + 6}" y="14">server CPU, µs</text>',
           f'<path d="M{left + MARGIN} 24V{HEIGHT - 32}H{left + WIDTH - 16}" fill="none" stroke="black"/>']
    out += [f'<text x="{left + MARGIN - 4}" y="{HEIGHT - 28 - share * (HEIGHT - 62):.0f}" text-anchor="end">{share * top:.{0 if top > 20 else 1}f}</text>'
            for share in (0, 0.5, 1)]
    out += [f'<text x="{at(r, next(iter(curves)))[0]:.0f}" y="{HEIGHT - 18}" text-anchor="middle">{r[x]}</text>' for r in rows]
    for colour, (field, name) in zip(COLOURS, curves.items(), strict=False):
        points = [at(r, field) for r in rows]
        out.append(f'<polyline points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out.append(f'<text x="{points[-1][0]:.0f}" y="{points[-1][1] - 6:.0f}" text-anchor="end" fill="{colour}">{name}</text>')
    return "".join(out)
