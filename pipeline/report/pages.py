"""HTML pages without further files: templates that escape what they are given, pictures in light and dark colours."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dpo.lm.whole_folder import write_atomically
from pipeline.errors import visible

TEMPLATES = Path(__file__).parent / "templates"
LIGHT = {"ink": "#1f2328", "faint": "#8b949e", "prompt": "#8250df", "chosen": "#1a7f37", "rejected": "#cf222e"}
DARK = {"ink": "#e6edf3", "faint": "#7d8590", "prompt": "#bc8cff", "chosen": "#3fb950", "rejected": "#ff7b72"}
DARK_FOR = {light: DARK[name] for name, light in LIGHT.items()}
SHOWN_CHARACTERS = 600  # of one text
Draw = Callable[[Any, dict[str, str]], None]  # axes of matplotlib, and colours by name


class Picture(NamedTuple):
    """One drawing as two data URIs; the browser chooses."""

    light: str
    dark: str
    caption: str


def picture(draw: Draw, caption: str) -> Picture:
    """Draw once: that takes most of the time of a page, and the dark picture is the light one in other colours."""
    drawn = _svg(draw, LIGHT)
    dark = re.sub("|".join(LIGHT.values()), lambda found: DARK_FOR[found[0]], drawn)
    return Picture(_uri(drawn), _uri(dark), caption)


def write_page(path: Path, template: str, **values: Any) -> None:
    """Fill a template of this folder and write the page. Every value is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["visible"] = lambda value: visible(str(value))
    environment.filters["cut"] = cut
    write_atomically(path, environment.get_template(template).render(**values))


def cut(text: str) -> str:
    """Return a text no longer than a page shows it."""
    return f"{text[:SHOWN_CHARACTERS]} …" if len(text) > SHOWN_CHARACTERS else text


def _uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _svg(draw: Draw, colors: dict[str, str]) -> str:
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    style: Any = {"text.color": colors["ink"], "axes.labelcolor": colors["ink"], "axes.edgecolor": colors["faint"]}
    style |= {"xtick.color": colors["ink"], "ytick.color": colors["ink"], "svg.hashsalt": "ray-align", "font.size": 9}
    with rc_context(style):
        figure = Figure(figsize=(5.2, 2.8), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes, colors)
        if axes.get_ylabel() in ("pairs", "prompts"):
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        out = io.BytesIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return out.getvalue().decode()
