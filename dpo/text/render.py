"""PreferencePair -> the text that is encoded, in spans that are scored or not: the chat template is asked only here."""

from __future__ import annotations

from typing import Any, NamedTuple

from jinja2 import TemplateError

from dpo.errors import InputError
from dpo.text.pairs import Message, PreferencePair
from dpo.text.rejection import Rejection

# What a template does with a value that it did not expect.
FAILS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
NO_TEMPLATE = (
    "the data has message lists, and the tokenizer has no chat template. "
    'Give one: [tokenizer] chat_template = "chatml", or the path of a Jinja file.'
)


class TemplateMissing(InputError):
    """Messages, and a tokenizer that has no chat template."""


class Span(NamedTuple):
    """A stretch of a completion: what the assistant says is scored, what comes between is not."""

    text: str
    scored: bool


class Rendered(NamedTuple):
    """`special`: the tokenizer's own begin token is to be added; a chat template brings its own."""

    prompt: str
    chosen: list[Span]
    rejected: list[Span]
    special: bool


def render(tokenizer: Any, pair: PreferencePair, options: dict[str, Any]) -> Rendered | Rejection:
    """The texts of a pair: strings as they are, messages as the chat template writes them.

    Args:
        options: further keywords of `apply_chat_template`, which the template may read.

    Raises:
        TemplateMissing: there is none.
    """
    if not pair.chat:
        chosen, rejected = [Span(str(pair.chosen), True)], [Span(str(pair.rejected), True)]
        return Rendered(str(pair.prompt), chosen, rejected, special=True)
    if tokenizer.chat_template is None:
        raise TemplateMissing(NO_TEMPLATE)
    writer = _Writer(tokenizer, pair.tools, options)
    before: list[Message] = list(pair.prompt)  # type: ignore[arg-type]
    try:
        prompt = writer(before, ask=True)
        sides = [_spans(writer, before, prompt, list(side), name) for name, side in _answers(pair)]
    except TemplateError as error:  # raise_exception() of the template, or a fault in it
        return Rejection(f"the chat template refuses the row: {error}", "template")
    except FAILS as error:
        return Rejection(f"the chat template fails on the row: {type(error).__name__}: {error}", "template")
    for side in sides:
        if isinstance(side, Rejection):
            return side
    chosen, rejected = sides
    return Rendered(prompt, chosen, rejected, special=False)  # type: ignore[arg-type]


def _answers(pair: PreferencePair) -> list[tuple[str, Any]]:
    return [("chosen", pair.chosen), ("rejected", pair.rejected)]


class _Writer:
    """A conversation -> what the template writes for it."""

    def __init__(self, tokenizer: Any, tools: list[Any] | None, options: dict[str, Any]):
        self.tokenizer, self.tools, self.options = tokenizer, tools, options

    def __call__(self, messages: list[Message], ask: bool = False) -> str:
        return self.tokenizer.apply_chat_template(
            messages, tools=self.tools, tokenize=False, add_generation_prompt=ask, **self.options
        )


def _spans(
    write: _Writer, before: list[Message], prompt: str, side: list[Message], name: str
) -> list[Span] | Rejection:
    """A completion in spans: for each assistant message what the template adds to the question before it.

    What precedes a turn must be rendered the same once the turn follows, else nobody knows where it begins.
    """
    so_far, spans, said = prompt, [], list(before)
    for number, message in enumerate(side):
        said = [*said, message]
        if message["role"] != "assistant":
            continue
        # The first turn is asked for by the prompt, a later one by what came between.
        asked = so_far if not spans else write(said[:-1], ask=side[number - 1]["role"] != "assistant")
        whole = write(said)
        if not whole.startswith(asked) or not asked.startswith(so_far):
            what = "the prompt" if not spans else "earlier turns"
            return Rejection(f"the chat template renders {what} differently once {name!r} follows", "template")
        if len(asked) > len(so_far):
            spans.append(Span(asked[len(so_far) :], False))
        spans.append(Span(whole[len(asked) :], True))
        so_far = whole
    return [span for span in spans if span.text]
