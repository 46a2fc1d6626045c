"""Converts Matplotlib figures to inline SVG that takes its colours from the page, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.figure import Figure

FONT = 11  # font size in units of the SVG, each about a pixel of a wide page
INK, SOFT, LINE, SURFACE, ACCENT = "#010101", "#010102", "#010103", "#010104", "#010105"
"""Placeholders for the page's colours: text, secondary text, grid lines, background and accent."""
THEME = {  # a figure's colours and the CSS variables that replace them
    INK: "currentColor",
    SOFT: "var(--soft)",
    LINE: "var(--line)",
    SURFACE: "var(--surface)",
    ACCENT: "var(--accent)",
    "#eeeeee": "var(--waiting)",
    "#c9d3df": "var(--held)",
    "#0072b2": "var(--blue)",
    "#56b4e9": "var(--sky)",
    "#d55e00": "var(--vermilion)",
    "#cc79a7": "var(--purple)",
    "#009e73": "var(--green)",
    "#e69f00": "var(--orange)",
    "#555555": "var(--grey)",
}
STYLE = {
    "svg.fonttype": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.labelsize": FONT,
    "axes.linewidth": 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlecolor": INK,
    "axes.titlesize": FONT,
    "font.size": FONT,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "xtick.labelsize": FONT,
    "ytick.labelsize": FONT,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
}
UNIT = 72  # units of the SVG per inch
DOTS = 144  # pixels per inch of rasterized parts


def ramp(index: int, count: int) -> str:
    """The placeholder for the colour of item `index`, from 0, of `count` ordered items."""
    return f"#05{round(100 * index / max(1, count - 1)):02x}00"


def css(colour: str) -> str:
    """The CSS of a figure's colour or placeholder."""
    if colour in THEME:
        return THEME[colour]
    if not re.fullmatch("#05[0-9a-f]{2}00", colour):
        return colour
    share = int(colour[3:5], 16)
    low, high, part = ("low", "middle", 2 * share) if share < 50 else ("middle", "high", 2 * share - 100)
    return f"color-mix(in oklab, var(--ramp-{high}) {part}%, var(--ramp-{low}))"


def draw_svg(name: str, label: str, size: tuple[float, float], draw: Callable[[Figure], None]) -> Markup:
    """Draw a figure as an SVG element of the page.

    Args:
        name: unique within the page; ids in the SVG begin with it.
        label: description for screen readers.
        size: width and height in units of the SVG.
        draw: draws into the figure.
    """
    out = io.StringIO()
    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(size[0] / UNIT, size[1] / UNIT), layout="constrained")
        draw(figure)
        figure.savefig(out, format="svg", dpi=DOTS, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = text.replace("xlink:href", "href")
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", text)
    text = re.sub(r'(href="|url\()#([^")]+)', rf"\1#{name}-\2", text)
    text = re.sub(r"<[^>]+>", lambda tag: _slim(tag[0]), text)
    text = re.sub(r">\s+<", "><", text)
    box = re.search(r'viewBox="[^"]+"', text)[0]
    # An inline SVG needs no namespaces, and its width is set by the page.
    text = re.sub(r"<svg[^>]*>", f'<svg {box} role="img" aria-label="{escape(label)}">', text, count=1)
    return Markup(text.strip())


def _slim(tag: str) -> str:
    """A tag with its coordinates rounded to two decimals and its colours replaced by the page's."""
    tag = re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), tag)
    return re.sub(r"#[0-9a-f]{6}\b", lambda found: css(found[0]), tag)
