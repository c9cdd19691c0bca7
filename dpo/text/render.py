"""PreferencePair -> text in spans that are scored or not. The only file that calls the chat template."""

from __future__ import annotations

from typing import Any, NamedTuple

from jinja2 import TemplateError

from dpo.errors import InputError
from dpo.text.pairs import Message, PreferencePair
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
        return Rendered(str(pair.prompt), chosen, rejected, special=True)
    if tokenizer.chat_template is None:
        raise TemplateMissing(NO_TEMPLATE)
    writer = _Writer(tokenizer, pair.tools, options)
    before: list[Message] = list(pair.prompt)  # type: ignore[arg-type]
    try:
        prompt = writer(before, ask=True)
        sides = [_spans(writer, before, prompt, list(side), name) for name, side in _answers(pair)]
    except TemplateError as error:  # the template called raise_exception(), or has a fault
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
        spans.append(Span(whole[len(asked) :], True))
        so_far = whole
    return [span for span in spans if span.text]
