"""A needle report as a picture: a row for each length, a column for each depth, found or not in colour and in a sign.

SVG written by hand: no plotting library, sharp at any size, and its colours follow the reader's light or dark page.
"""

from __future__ import annotations

from html import escape

from qwenstack.evals.needle import Cell, Place
from qwenstack.evals.needle_report import NeedleReport

_CELL_WIDTH, _CELL_HEIGHT, _GAP = 52, 40, 4
_LEFT, _TOP, _BOTTOM = 96, 64, 48
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.title { font-size: 15px; font-weight: 600; }
.sign { font-size: 18px; font-weight: 700; fill: #ffffff; text-anchor: middle; }
.middle { text-anchor: middle; }
.end { text-anchor: end; }
.found { fill: #1a7f64; }
.lost { fill: #b3412e; }
.open { fill: none; stroke: #8c959f; stroke-dasharray: 3 3; }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3; } .found { fill: #238a6e; } .lost { fill: #c2513e; } }
"""
"""White signs on both colours have a contrast above 4.5 in the light, above 4 in the dark (WCAG 2.2 asks 3 at 18 px
bold); found and lost differ in lightness and sign too, for those who do not see red and green apart."""


def draw(report: NeedleReport) -> str:
    """Return the picture as SVG text; cells that were not asked are dashed."""
    lengths = sorted({cell.place.length for cell in report.cells})
    depths = sorted({cell.place.depth_percent for cell in report.cells})
    width = max(_LEFT + len(depths) * (_CELL_WIDTH + _GAP) + 16, 400)
    height = _TOP + len(lengths) * (_CELL_HEIGHT + _GAP) + _BOTTOM
    title = f"{report.setup.model}: {report.num_found} of {len(report.cells)} needles found"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"',
        ' role="img" aria-labelledby="title description">',
        f'<title id="title">{escape(title)}</title>',
        f'<desc id="description">{escape(describe(report))}</desc>',
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="16" y="26">{escape(title)}</text>',
        f'<text class="end" x="{_LEFT - 10}" y="{_TOP - 10}">tokens</text>',
    ]
    for column, depth in enumerate(depths):
        parts.append(f'<text class="middle" x="{_middle(column)}" y="{_TOP - 10}">{depth} %</text>')
    for row, length in enumerate(lengths):
        y = _TOP + row * (_CELL_HEIGHT + _GAP)
        parts.append(f'<text class="end" x="{_LEFT - 10}" y="{y + 25}">{length:,}</text>')
        for column, depth in enumerate(depths):
            cell = report.cell_at(Place(length=length, depth_percent=depth))
            parts.extend(_draw_cell(cell, _middle(column), y))
    parts.append(f'<text x="{_LEFT}" y="{height - 18}">Depth of the needle: 0 % is the start of the text</text>')
    return "\n".join([*parts, "</svg>", ""])


def describe(report: NeedleReport) -> str:
    """Return in words what the picture shows, for those who do not see it."""
    if not report.cells:
        return "Nothing was asked."
    lost = [cell.place for cell in report.cells if not cell.found]
    if not lost:
        return "Found at every length and depth."
    where = ", ".join(f"{place.length:,} tokens at {place.depth_percent} %" for place in lost)
    return f"Not found: {where}. Found everywhere else."


def _middle(column: int) -> int:
    return _LEFT + column * (_CELL_WIDTH + _GAP) + _CELL_WIDTH // 2


def _draw_cell(cell: Cell | None, middle: int, y: int) -> list[str]:
    kind = "open" if cell is None else "found" if cell.found else "lost"
    square = (
        f'<rect class="{kind}" x="{middle - _CELL_WIDTH // 2}" y="{y}" width="{_CELL_WIDTH}" '
        f'height="{_CELL_HEIGHT}" rx="4"/>'
    )
    if cell is None:
        return [square]
    sign = "✓" if cell.found else "✗"
    hint = f"{cell.place.length:,} tokens, {cell.place.depth_percent} %: asked for {cell.code}, got {cell.answer!r}"
    return [
        f"<g><title>{escape(hint)}</title>{square}",
        f'<text class="sign" x="{middle}" y="{y + 26}">{sign}</text></g>',
    ]
