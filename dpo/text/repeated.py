"""Whether the text of a column stands in the pair as well, so that nothing is lost if nobody reads the column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from dpo.text.beside import THOUGHTS
from dpo.text.calls import too_deep


class Said(NamedTuple):
    """The texts of a row's pairs: of their prompts, and of their answers."""

    asked: list[str]
    answered: list[str]


BEGINNINGS = ("prefix", "prefill", "chosen_prefix")  # of answers


def repeats(name: str, value: Any, said: Said) -> bool:
    """Tell whether a column has text, all of which stands where it belongs, so that nothing is lost without it.

    Texts of messages are whole messages, thoughts stand in an answer, beginnings begin one, and all others stand in the
    prompt, between blanks or other signs: a "7" in "17" is another text.
    """
    leaves = [] if too_deep(value) else [leaf.strip() for leaf in _leaves(value)]
    name = name.rpartition(".")[2].lower()
    if name in THOUGHTS:
        return bool(leaves) and all(_stands_in(leaf, said.answered) for leaf in leaves)
    if name in BEGINNINGS:
        begun = (
            any(text.lstrip().startswith(leaf) for text in said.answered) or _stands_in(leaf, said.asked)
            for leaf in leaves
        )
        return bool(leaves) and all(begun)
    if name in ("chosen", "rejected") or _is_talk(value):
        whole = {text.strip() for text in (*said.asked, *said.answered)}
        return bool(leaves) and all(leaf in whole for leaf in leaves)
    return bool(leaves) and all(_stands_in(leaf, said.asked) for leaf in leaves)


def _is_talk(value: Any) -> bool:
    """Tell whether a value is a list of messages that say who speaks."""
    return isinstance(value, list) and all(
        isinstance(one, Mapping) and not {"role", "from"}.isdisjoint(one) for one in value
    )


def _stands_in(leaf: str, texts: list[str]) -> bool:
    """Tell whether a text stands in one of some texts, not within one of its words."""
    for text in texts:
        at = text.find(leaf)
        while at >= 0:
            behind = at + len(leaf)
            inside = (leaf[:1].isalnum() and text[:at][-1:].isalnum()) or (
                leaf[-1:].isalnum() and text[behind : behind + 1].isalnum()
            )
            if not inside:
                return True
            at = text.find(leaf, at + 1)
    return False


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if name not in ("role", "from", "type"):
                yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
