"""Known chat templates that write a turn differently once another follows -> variants of them for training.

A template is known by its digest. In a variant, how a turn is written depends on nothing behind it: the turns before
`first_answer`, which is the index of the first message of a completion, are written as the template writes them for a
model that answers next, those of the completion with their thoughts, also in front of further turns.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any, NamedTuple


class Variant(NamedTuple):
    """A template for training, with the name of its model and what is different."""

    template: str
    model: str
    difference: str
    of_all: bool  # also of completions of a single turn, which other variants write as the template does


Edits = tuple[tuple[str, str], ...]  # each a part of the template, and what stands there instead

FIRST = "{%- if not first_answer is defined %}{%- set first_answer = messages | length %}{%- endif %}"
KEEPS = "every turn of a completion keeps its thoughts, an empty thought where it has none"
QWEN3: Edits = (
    (
        "{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}",
        FIRST + "{%- set ns = namespace(multi_step_tool=true, last_query_index=first_answer - 1) %}",
    ),
    ("{%- for message in messages[::-1] %}", "{%- for message in messages[:first_answer][::-1] %}"),
    (
        "{%- set index = (messages|length - 1) - loop.index0 %}",
        "{%- set index = (first_answer - 1) - loop.index0 %}",
    ),
    (
        "{%- if loop.last or (not loop.last and reasoning_content) %}",  # later versions do without
        "{%- if loop.index0 >= first_answer or reasoning_content %}",
    ),
)
CUTS = "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
SAYS = "{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}"  # noqa: RUF001
DEEPSEEK_R1: Edits = (
    (
        CUTS + SAYS,
        "{% set thoughts = message['reasoning_content'] if message['reasoning_content'] is string else '' %}"
        "{% if '</think>' in content %}"
        "{% set thoughts = content.split('</think>')[0].split('<think>')[-1] %}"
        "{% set content = content.split('</think>')[-1] %}{% endif %}"
        "{% if loop.index0 >= first_answer %}"
        "{{ '<｜Assistant｜><think>\n' + thoughts.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') "  # noqa: RUF001
        "+ '<｜end▁of▁sentence｜>' }}"  # noqa: RUF001
        "{% else %}" + SAYS + "{% endif %}",
    ),
    (
        "{% if not add_generation_prompt is defined %}",
        FIRST + "{% if not add_generation_prompt is defined %}",
    ),
)
PHI3: Edits = (("{% else %}{{ eos_token }}{% endif %}", "{% endif %}"),)
ENDS_ONCE = "the end token stands behind the last turn alone"

# The first 16 digits of the SHA-256 of a template without blanks at its ends -> the model, the edits, the difference.
KNOWN: dict[str, tuple[str, Edits, str]] = {
    "a55ee1b1660128b7": ("Qwen3", QWEN3, KEEPS),
    "a4aee8afcf2e0711": ("Qwen3.5", QWEN3, KEEPS),
    "273d8e0e683b8850": ("Qwen3.5 without thinking", QWEN3, KEEPS),
    "e84f32a23fdda276": ("Qwen3.6", QWEN3, KEEPS),
    "56a1447ad31926fd": ("DeepSeek-R1-Distill", DEEPSEEK_R1, KEEPS),
    "dcaee66df77bfbb7": ("Phi-3", PHI3, ENDS_ONCE),
    "78d976a442bcde2f": ("Phi-3.5", PHI3, ENDS_ONCE),
}


def training_variant(template: Any) -> Variant | None:
    """Return the variant for training of a known template, else None."""
    return _variant(template) if isinstance(template, str) else None


@lru_cache(maxsize=4)
def _variant(template: str) -> Variant | None:
    known = KNOWN.get(hashlib.sha256(template.strip().encode()).hexdigest()[:16])
    if known is None:
        return None
    model, edits, difference = known
    for part, instead in edits:
        template = template.replace(part, instead)
    return Variant(template, model, difference, edits is DEEPSEEK_R1)


def variant_said(template: Any, several_turns: int, chat: int) -> Variant | None:
    """Return the variant of a template if it writes some of these pairs otherwise than the template."""
    variant = training_variant(template)
    return variant if variant is not None and (several_turns or (variant.of_all and chat)) else None
