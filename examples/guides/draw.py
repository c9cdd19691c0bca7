"""Draw the pictures of README and the guides, each for a light and a dark page: python examples/guides/draw.py

The bars are read from the newest result of each workload in examples/results/.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

HERE = Path(__file__).resolve().parent
PICTURES = HERE / "pictures"
RESULTS = HERE.parent / "results"
FONT = "font-family=\"system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif\""


class Theme(NamedTuple):
    """Colours of a picture."""

    ink: str  # text and arrows
    quiet: str  # what is less important
    panel: str  # the ground of a group
    box: str
    edge: str
    prompt: str
    chosen: str
    rejected: str
    padding: str
    on_colour: str  # text on one of the four above


THEMES = {
    "light": Theme(
        "#1f2328", "#59636e", "#f3f5f8", "#ffffff", "#8c959f", "#3b78c3", "#2f8a57", "#c4623a", "#d5dae0", "#ffffff"
    ),
    "dark": Theme(
        "#e6edf3", "#9198a1", "#1a212b", "#242d39", "#5b6673", "#5a93d8", "#4aa874", "#d9814f", "#3a434e", "#0d1117"
    ),
}


def text(
    x: float, y: float, words: str, colour: str, size: int = 14, anchor: str = "middle", bold: bool = False
) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:g}" y="{y:g}" fill="{colour}" font-size="{size}" text-anchor="{anchor}"{weight}>'
        f"{escape(words)}</text>"
    )


def rectangle(x: float, y: float, width: float, height: float, fill: str, edge: str = "none", radius: int = 7) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius}" fill="{fill}" stroke="{edge}"/>'
    )


def arrow(points: list[tuple[float, float]], colour: str) -> str:
    line = " ".join(f"{x:g},{y:g}" for x, y in points)
    return f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.6" marker-end="url(#head)"/>'


def page(width: int, height: int, title: str, theme: Theme, parts: Iterable[str]) -> str:
    head = (
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L10 5L0 10z" fill="{theme.ink}"/></marker></defs>'
    )
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" {FONT}>\n'
        f"<title>{escape(title)}</title>\n{head}\n{body}\n</svg>\n"
    )


def box(x: float, y: float, width: float, words: str, below: str, theme: Theme) -> list[str]:
    """A stage: its name, and what it makes."""
    middle = x + width / 2
    return [
        rectangle(x, y, width, 54, theme.box, theme.edge),
        text(middle, y + 23, words, theme.ink, 15, bold=True),
        text(middle, y + 42, below, theme.quiet, 12),
    ]


def group(x: float, y: float, width: float, height: float, words: str, theme: Theme) -> list[str]:
    """A ground for the stages that one part of Ray runs."""
    return [
        rectangle(x, y, width, height, theme.panel, theme.edge, 10),
        text(x + 12, y + 20, words, theme.quiet, 13, "start", bold=True),
    ]


def line(theme: Theme) -> str:
    """The way of the data through the seven stages, and which part of Ray runs which."""
    y, low = 64, 198
    parts = [text(46, y + 22, "model", theme.ink, 15), text(46, y + 42, "pairs", theme.ink, 15)]
    for x, words in [
        (95, "Ray Data, CPUs"),
        (265, "Ray Train, GPUs"),
        (435, "Ray actors, GPUs"),
        (775, "Ray Data, CPUs"),
    ]:
        parts += group(x - 4, 26, 148, 108, words, theme)
    for x, words in [(105, "Ray Train with ZeRO, GPUs"), (345, "Ray actors, GPUs"), (555, "driver, CPUs")]:
        parts += group(x, low - 38, 220 if x == 105 else 160, 108, words, theme)
    for x, words, below in [
        (105, "prepare", "token ids"),
        (275, "sft", "if asked for"),
        (445, "score", "frozen model"),
        (785, "order", "shuffled epochs"),
    ]:
        parts += box(x, y, 120, words, below, theme)
    for x, words, below in [
        (145, "train", "DPO steps"),
        (365, "evaluate", "held-out pairs"),
        (565, "export", "folder for the hub"),
    ]:
        parts += box(x, low, 120 if x < 565 else 140, words, below, theme)
    parts += [
        rectangle(610, y - 2, 130, 58, theme.box, theme.prompt, 20),
        text(675, y + 23, "cache", theme.ink, 15, bold=True),
        text(675, y + 42, "of log-probs", theme.quiet, 12),
    ]
    for start, end in [(74, 105), (225, 275), (395, 445), (565, 610), (740, 785)]:
        parts.append(arrow([(start, y + 27), (end - 2, y + 27)], theme.ink))
    for start, end in [(265, 365), (485, 565)]:
        parts.append(arrow([(start, low + 27), (end - 2, low + 27)], theme.ink))
    parts.append(arrow([(845, y + 54), (845, 146), (60, 146), (60, low + 27), (143, low + 27)], theme.ink))
    parts.append(text(725, low + 22, "Every later run reads the cache:", theme.quiet, 13, "start"))
    parts.append(text(725, low + 41, "nothing is scored twice.", theme.quiet, 13, "start"))
    title = "Pairs and a model become token ids, cached log-probs, ordered epochs, DPO steps and an exported folder"
    return page(940, 285, title, theme, parts)


def strip(x: float, y: float, pieces: list[tuple[str, float, str]], theme: Theme) -> list[str]:
    """Pieces of a row of tokens: words, width, colour."""
    parts = []
    for words, width, colour in pieces:
        parts.append(rectangle(x, y, width - 2, 34, colour, radius=4))
        ink = theme.quiet if colour == theme.padding else theme.on_colour
        parts.append(text(x + width / 2, y + 22, words, ink, 13))
        x += width
    return parts


def shared(theme: Theme) -> str:
    """Two padded rows, and the same pair with its prompt computed once."""
    prompt, chosen, rejected = ("prompt", 230.0), ("chosen", 150.0), ("rejected", 80.0)
    parts = [text(20, 28, "Usual: the prompt twice, and padding", theme.ink, 15, "start", bold=True)]
    parts += strip(20, 42, [(*prompt, theme.prompt), (*chosen, theme.chosen)], theme)
    parts += strip(
        20, 80, [(*prompt, theme.prompt), (*rejected, theme.rejected), ("padding", 70, theme.padding)], theme
    )
    parts.append(text(20, 156, "ray-align: the prompt once, then both answers", theme.ink, 15, "start", bold=True))
    parts += strip(20, 170, [(*prompt, theme.prompt), (*chosen, theme.chosen), (*rejected, theme.rejected)], theme)
    parts += [
        text(
            20,
            230,
            "Each answer looks at the prompt and at itself, never at the other answer.",
            theme.quiet,
            13,
            "start",
        ),
        text(20, 250, "The output head runs on the answers alone. The numbers are the same.", theme.quiet, 13, "start"),
    ]
    return page(500, 266, "A prompt is computed once for both of its answers", theme, parts)


WORKLOADS = {  # name of a result -> what the picture calls it
    "hh-like": "short dialogues",
    "tulu_human_pairs": "instructions",
    "qa_feedback": "long prompts",
}
SYSTEMS = {  # of a result -> what the picture calls it, and its colour
    "TRL, 8 pairs a micro-batch": ("TRL 1.16, 8 pairs per micro-batch", "padding"),
    "TRL, 1 pair": ("TRL 1.16, 1 pair (its best)", "prompt"),
    "+ cached reference": ("ray-align", "chosen"),
}


def newest(workload: str) -> Path:
    return max(RESULTS.glob(f"????-??-??-{workload}.json"))


def speeds() -> dict[str, dict[str, float]]:
    """Pairs per second of each system relative to TRL at its best, by workload."""
    found = {}
    for workload in WORKLOADS:
        systems = json.loads(newest(workload).read_text(encoding="utf-8"))["systems"]
        base = systems["TRL, 1 pair"]["pairs_per_second"]
        found[workload] = {name: systems[name]["pairs_per_second"] / base for name in SYSTEMS}
    return found


def bars(theme: Theme) -> str:
    """Training speed on two CPU cores, relative to TRL at its best."""
    found, unit, y = speeds(), 150.0, 72.0
    title, measure = "Training speed on two CPU cores", "Pairs per second, relative to TRL at its best"
    parts = [
        text(20, 28, title, theme.ink, 15, "start", bold=True),
        text(20, 48, measure, theme.quiet, 12, "start"),
    ]
    for workload, words in WORKLOADS.items():
        parts.append(text(140, y + 43, words, theme.ink, 13, "end"))
        for name, ratio in found[workload].items():
            colour = getattr(theme, SYSTEMS[name][1])
            parts.append(rectangle(150, y, ratio * unit, 18, colour, radius=3))
            parts.append(text(156 + ratio * unit, y + 14, f"{ratio:.2f}", theme.ink, 12, "start"))
            y += 21
        y += 18
    for x, (words, colour) in zip((20, 290, 500), SYSTEMS.values(), strict=True):
        parts.append(rectangle(x, y, 12, 12, getattr(theme, colour), radius=3))
        parts.append(text(x + 18, y + 11, words, theme.quiet, 12, "start"))
    dates = ", ".join(sorted({newest(workload).name[:10] for workload in WORKLOADS}))
    notes = (
        "A Llama of 27 M parameters, float32, the same pairs in the same steps.",
        f"TRL, too, had its reference's log-probs precomputed. Measured {dates}.",
    )
    for row, note in enumerate(notes):
        parts.append(text(20, y + 36 + 17 * row, note, theme.quiet, 12, "start"))
    return page(620, int(y + 66), f"{title}: {measure}", theme, parts)


DRAWINGS = {"line": line, "shared": shared, "speed": bars}


def main() -> None:
    for name, draw in DRAWINGS.items():
        for mode, theme in THEMES.items():
            (PICTURES / f"{name}-{mode}.svg").write_text(draw(theme), encoding="utf-8")


if __name__ == "__main__":
    main()
