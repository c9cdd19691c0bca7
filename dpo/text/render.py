"""PreferencePair -> text in spans that are scored or not. The only file that calls the chat template."""

from __future__ import annotations

from typing import Any, NamedTuple

from jinja2 import TemplateError

from dpo.errors import InputError
from dpo.text.messages import Message
from dpo.text.pairs import PreferencePair
from dpo.text.rejection import Rejection

# Errors that a template may raise on an unexpected value.
FAILS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
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


def render(tokenizer: Any, pair: PreferencePair, options: dict[str, Any]) -> Rendered | Rejection:
    """Return the texts of a pair: strings unchanged, messages as the chat template renders them.

    Args:
        options: further arguments of `apply_chat_template`, which the template may read.

    Raises:
        TemplateMissing: the pair has messages, but the tokenizer has no chat template.
    """
    if not pair.chat:
        chosen, rejected = [Span(str(pair.chosen), True)], [Span(str(pair.rejected), True)]
        return Rendered(_with_lead(str(pair.prompt), pair.lead), chosen, rejected, special=True)
    if tokenizer.chat_template is None:
        raise TemplateMissing(NO_TEMPLATE)
    writer = _Writer(tokenizer, pair.tools, {**options, **(pair.options or {})})
    before: list[Message] = list(pair.prompt)  # type: ignore[arg-type]
    try:
        prompt = writer(before, ask=True)
        sides = [_spans(writer, before, prompt, list(side), name) for name, side in _answers(pair)]
    except TemplateError as error:  # the template called raise_exception(), or has a fault
        return Rejection(f"the chat template refuses the row: {error}", "template")
    except FAILS as error:
        return Rejection(f"the chat template fails on the row: {type(error).__name__}: {error}", "template")
    if pair.lead:
        sides = [side if isinstance(side, Rejection) else _without_lead(side, pair.lead) for side in sides]
    for side in sides:
        if isinstance(side, Rejection):
            return side
    chosen, rejected = sides
    return Rendered(prompt, chosen, rejected, special=False)  # type: ignore[arg-type]


def _answers(pair: PreferencePair) -> list[tuple[str, Any]]:
    return [("chosen", _led(pair.chosen, pair.lead)), ("rejected", _led(pair.rejected, pair.lead))]


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


class _Writer:
    """A function from a conversation to its text under the chat template."""

    def __init__(self, tokenizer: Any, tools: list[Any] | None, options: dict[str, Any]):
        self.tokenizer, self.tools, self.options = tokenizer, tools, options

    def __call__(self, messages: list[Message], ask: bool = False) -> str:
        return self.tokenizer.apply_chat_template(
            messages, tools=self.tools, tokenize=False, add_generation_prompt=ask, **self.options
        )


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
