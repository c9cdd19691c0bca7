"""PreferencePair -> text in spans that are scored or not."""

from __future__ import annotations

from typing import Any, NamedTuple

from jinja2 import TemplateError

from dpo.errors import InputError
from dpo.text.arrives import LOST, lost_from, lost_tool
from dpo.text.messages import Message
from dpo.text.pairs import PreferencePair
from dpo.text.rejection import Rejection
from dpo.text.template import FAILS, Template

NO_TEMPLATE = (
    "the data has message lists, but the tokenizer has no chat template. "
    'Set [tokenizer] chat_template = "chatml", or the path of a Jinja file.'
)


class TemplateMissing(InputError):
    """The data has messages, but the tokenizer has no chat template."""


class Span(NamedTuple):
    """A part of a completion. The assistant's text is scored; the text between its turns is not."""

    text: str
    scored: bool


class Rendered(NamedTuple):
    """The texts of a pair. If `special`, the tokenizer's begin token must be added; a chat template writes its own."""

    prompt: str
    chosen: list[Span]
    rejected: list[Span]
    special: bool


def render(
    tokenizer: Any, pair: PreferencePair, options: dict[str, Any], template: Template | None = None
) -> Rendered | Rejection:
    """Return the texts of a pair: strings unchanged, messages as the chat template renders them.

    A Rejection if the template refuses the pair, or leaves out a text of it.

    Args:
        options: further arguments of `apply_chat_template`, which the template may read.
        template: of this tokenizer with these options, to be used again.

    Raises:
        TemplateMissing: the pair has messages, but the tokenizer has no chat template.
    """
    if not pair.chat:
        chosen, rejected = [Span(str(pair.chosen), True)], [Span(str(pair.rejected), True)]
        return Rendered(_with_lead(str(pair.prompt), pair.lead), chosen, rejected, special=True)
    if tokenizer.chat_template is None:
        raise TemplateMissing(NO_TEMPLATE)
    template = template or Template(tokenizer, options)
    for name, value in (pair.options or {}).items():
        if isinstance(value, str) and len(value.split()) > 1 and not template.mentions(name):
            said = f"'chat_template_kwargs' has a text, {name!r}, which the chat template does not read"
            return Rejection(f"{said}. Write it into a message of the system, or use a template that reads it", LOST)
    said = _sides(pair)
    given = [template.handed(messages, name) for name, messages in said]
    for messages in given:
        if isinstance(messages, Rejection):
            return messages
    before, *sides = given
    writer = _Writer(template, pair, len(before))
    try:
        prompt = writer(before, ask=True)  # type: ignore[arg-type]
        found = [
            _spans(writer, before, prompt, side, name)  # type: ignore[arg-type]
            for name, side in zip(("chosen", "rejected"), sides, strict=True)
        ]
    except TemplateError as error:  # the template called raise_exception(), or has a fault
        return Rejection(f"the chat template refuses the row: {error}", "template")
    except FAILS as error:
        return Rejection(f"the chat template fails on the row: {type(error).__name__}: {error}", "template")
    if pair.lead:
        found = [side if isinstance(side, Rejection) else _without_lead(side, pair.lead) for side in found]
    for side in found:
        if isinstance(side, Rejection):
            return side
    rendered = Rendered(prompt, *found, special=False)  # type: ignore[arg-type]
    return _lost(pair, said, rendered) or rendered


def _sides(pair: PreferencePair) -> list[tuple[str, list[Message]]]:
    sides = [(name, _led(getattr(pair, name), pair.lead)) for name in ("chosen", "rejected")]
    return [("prompt", list(pair.prompt)), *sides]  # type: ignore[list-item]


def _with_lead(prompt: str, lead: str) -> str:
    """Put the beginning that both answers share behind the prompt, on a line of its own unless a blank parts them."""
    apart = not lead or prompt[-1:].isspace() or lead[:1].isspace()
    return f"{prompt}{'' if apart else chr(10)}{lead}"


def _led(side: Any, lead: str) -> list[Message]:
    first, *later = side
    return [{**first, "content": lead + first["content"]}, *later] if lead else list(side)


def _without_lead(spans: list[Span], lead: str) -> list[Span] | Rejection:
    """Part the unscored beginning of an answer from the rest of its first scored span."""
    at = next((number for number, span in enumerate(spans) if span.scored), None)
    end = spans[at].text.find(lead) + len(lead) if at is not None else -1
    if at is None or end < len(lead):
        return Rejection("the chat template changes the beginning of the answers that is not scored", "template")
    text = spans[at].text
    parted = [*spans[:at], Span(text[:end], False), Span(text[end:], True), *spans[at + 1 :]]
    return [span for span in parted if span.text]


def _lost(pair: PreferencePair, said: list[tuple[str, list[Message]]], rendered: Rendered) -> Rejection | None:
    """Find a text of the pair that does not stand in what the template wrote."""
    written = [rendered.prompt, *("".join(span.text for span in side) for side in (rendered.chosen, rendered.rejected))]
    for (name, messages), text in zip(said, written, strict=True):
        lost = lost_from(messages, text, name, history=name == "prompt")
        if lost is not None:
            return lost
    return lost_tool(pair.tools, rendered.prompt) if pair.tools else None


class _Writer:
    """A function from a conversation to its text under the chat template, with the tools and options of one pair."""

    def __init__(self, template: Template, pair: PreferencePair, first: int):
        self.template, self.pair, self.first = template, pair, first

    def __call__(self, messages: list[Message], ask: bool = False) -> str:
        return self.template(messages, ask, self.pair.tools, self.first, **(self.pair.options or {}))


def _spans(
    write: _Writer, before: list[Message], prompt: str, side: list[Message], name: str
) -> list[Span] | Rejection:
    """Split a completion into spans: for each assistant message, the text that the template adds for it.

    The text before a turn must render the same with and without that turn; otherwise its beginning is unknown.
    """
    so_far, spans, said = prompt, [], list(before)
    for number, message in enumerate(side):
        said = [*said, message]
        if message["role"] != "assistant":
            continue
        # `prompt` ends with the generation prompt of the first turn. A later turn needs one too, unless it follows
        # another assistant message.
        asked = so_far if not spans else write(said[:-1], ask=side[number - 1]["role"] != "assistant")
        whole = write(said)
        if not whole.startswith(asked) or not asked.startswith(so_far):
            what = "the prompt" if not spans else "earlier turns"
            return Rejection(f"the chat template renders {what} differently once {name!r} follows", "template")
        if len(asked) > len(so_far):
            spans.append(Span(asked[len(so_far) :], False))
        spans.append(Span(whole[len(asked) :], message.get("scored", True)))
        so_far = whole
    return [span for span in spans if span.text]
