"""A picture of a page is drawn once, and its dark colours stand where the light ones were."""

import base64
import re

import numpy as np

from pipeline.report import pages


def draw(axes, colors):
    axes.plot([1, 2, 3], [2, 1, 3], color=colors["prompt"], marker="o", label="a line")
    axes.hist([1, 1, 2], np.linspace(0, 3, 4), color=colors["chosen"], alpha=0.5, label="bars")
    axes.bar_label(axes.bar(["4", "5"], [1, 2], color=[colors["rejected"], colors["faint"]]), color=colors["ink"])
    axes.axhline(1.5, color=colors["faint"], ls="--")
    axes.set(xlabel="steps", ylabel="pairs", title="all kinds")
    axes.legend(frameon=False)


def without_names(svg):
    """Matplotlib makes the names of its shapes of their colours, too."""
    return re.sub(r'(?<=[#"])(?:m|C0_\d+_|p)[0-9a-f]{6,}', "name", svg)


def of_uri(uri):
    return base64.b64decode(uri.partition(",")[2]).decode()


def test_the_dark_picture_is_what_drawing_it_would_give():
    found = pages.picture(draw, "kinds")
    light, dark = of_uri(found.light), of_uri(found.dark)
    assert light == pages._svg(draw, pages.LIGHT)
    assert without_names(dark) == without_names(pages._svg(draw, pages.DARK)) != without_names(light)


def test_no_colour_is_in_both():
    assert not {*pages.LIGHT.values()} & {*pages.DARK.values()}
    assert len({*pages.LIGHT.values()}) == len(pages.LIGHT) and pages.LIGHT.keys() == pages.DARK.keys()
