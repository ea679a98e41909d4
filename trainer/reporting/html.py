"""Pieces of a page that stands alone: tables and curves, every text escaped. Pure functions of values."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM = 460, 200, 60, 24
"""Of a curve in pixels, with the room for its numbers."""
MAX_POINTS = 600
"""Of a curve: more are thinned evenly."""

Points = Sequence[tuple[float, float]]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #18181c }
table { border-collapse: collapse } td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top }
th { border-bottom: 1px solid #8a8a94 } figure { display: inline-block; margin: 0 1rem 1rem 0; max-width: 100% }
figure img { max-width: 100% } svg { background: #f6f6f8 } pre { background: #f6f6f8; padding: 1rem; overflow: auto }
.wrong { color: #b00020 }
"""


def page(title: str, sections: Iterable[tuple[str, str]]) -> str:
    """A whole page.

    Args:
        sections: (heading, HTML that is safe already).
    """
    body = "\n".join(f"<section><h2>{escape(name)}</h2>\n{content}\n</section>" for name, content in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n{body}\n"
        "</body></html>\n"
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells of plain text."""
    lines = [f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table><tr>{''.join(f'<th>{escape(name)}</th>' for name in header)}</tr>{''.join(lines)}</table>"


def figure(source: str, caption: str) -> str:
    """A picture from a data URI."""
    return f'<figure><img src="{escape(source)}" alt=""><figcaption>{escape(caption)}</figcaption></figure>'


def curves(series: Mapping[str, Points]) -> str:
    """A curve of each, by optimizer step."""
    return "".join(_curve(name, points) for name, points in series.items() if points)


def _curve(name: str, points: Points) -> str:
    points = points[:: -(-len(points) // MAX_POINTS)] if len(points) > MAX_POINTS else points
    steps, values = [step for step, _ in points], [value for _, value in points]
    low, high = min(values), max(values)
    across, up = (max(steps) - min(steps)) or 1, (high - low) or 1
    inside = WIDTH - LEFT - 10, HEIGHT - BOTTOM - 10
    places = [
        (LEFT + (step - min(steps)) / across * inside[0], 10 + (1 - (value - low) / up) * inside[1])
        for step, value in points
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="#2456c9"/>' for x, y in places[:1] + places[-1:])
    floor = HEIGHT - BOTTOM
    texts = (
        (LEFT - 4, 18, "end", f"{high:.3g}"),
        (LEFT - 4, floor, "end", f"{low:.3g}"),
        (LEFT, HEIGHT - 6, "start", f"{min(steps):,.0f}"),
        (WIDTH - 10, HEIGHT - 6, "end", f"step {max(steps):,.0f}"),
    )
    words = "".join(
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="11">{escape(word)}</text>'
        for x, y, anchor, word in texts
    )
    return (
        f'<figure><svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(name)}"><path d="M{LEFT} 10V{floor}H{WIDTH - 10}" fill="none" stroke="#8a8a94"/>'
        f'<polyline points="{line}" fill="none" stroke="#2456c9" stroke-width="1.5"/>{dots}{words}</svg>'
        f"<figcaption>{escape(name)}</figcaption></figure>"
    )
