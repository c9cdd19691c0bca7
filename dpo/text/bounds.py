"""Bounds of time and memory for rendering a row; Jinja's sandbox sets neither for a chat template."""

from __future__ import annotations

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError

from dpo.text.pairs import PreferencePair
from dpo.text.rejection import Rejection
from dpo.text.render import Rendered, render
from dpo.text.template import FAILS, Template
from dpo.text.tokenizers import TokenizerError

SECONDS = 5.0  # of one row
BYTES = 512 * 2**20  # that rendering may take beyond what the process has
CHARACTERS = 4 * 2**20  # of a pair once it is rendered; a million tokens and more
TRIAL = [{"role": "user", "content": "Where is Oslo?"}, {"role": "assistant", "content": "In Norway."}]
OTHER = 'Name another with [tokenizer] chat_template: "chatml", or the path of a Jinja file.'
STATM = Path("/proc/self/statm")


class TooSlow(Exception):
    """A chat template did not end in time."""


def render_within(
    tokenizer: Any, pair: PreferencePair, options: dict[str, Any], template: Template | None = None
) -> Rendered | Rejection:
    """Render a pair within the bounds of time and size. Call it within `bounded_memory`.

    Raises:
        TemplateMissing: as `render`.
    """
    try:
        with bounded_time() if pair.chat else nullcontext():
            texts = render(tokenizer, pair, options, template)
    except TooSlow:
        return Rejection(f"the chat template took more than {SECONDS:g} s for the row", "template")
    except MemoryError:
        return Rejection(f"the chat template took more than {BYTES:,} bytes for the row", "template")
    if isinstance(texts, Rejection):
        return texts
    length = len(texts.prompt) + sum(len(span.text) for side in (texts.chosen, texts.rejected) for span in side)
    if length > CHARACTERS:
        return Rejection(f"the row has {length:,} characters once rendered; the limit is {CHARACTERS:,}", "too long")
    return texts


def try_template(tokenizer: Any) -> None:
    """Render two short messages with the chat template of a tokenizer. What it refuses is a matter of the rows.

    Raises:
        TokenizerError: the template is no Jinja, or exceeds the bounds of one row.
    """
    said = f"the chat template of the tokenizer cannot be used: for two short messages it takes more than {{}}. {OTHER}"
    try:
        with bounded_time(), bounded_memory():
            text = tokenizer.apply_chat_template(TRIAL, tokenize=False)
    except TemplateSyntaxError as error:
        fault = f"it is not valid Jinja (line {error.lineno}): {error.message}"
        raise TokenizerError(f"the chat template of the tokenizer cannot be used: {fault}. {OTHER}") from None
    except (TemplateError, *FAILS):
        return
    except TooSlow:
        raise TokenizerError(said.format(f"{SECONDS:g} s")) from None
    except MemoryError:
        raise TokenizerError(said.format(f"{BYTES:,} bytes")) from None
    if len(text) > CHARACTERS:
        raise TokenizerError(said.format(f"{CHARACTERS:,} characters"))


@contextmanager
def bounded_time() -> Iterator[None]:
    """Raise a TooSlow in the body after SECONDS. Only the main thread can be interrupted; others are not bounded."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGALRM, _too_slow)
    left, _ = signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)  # of whoever else had set it
        signal.signal(signal.SIGALRM, handler)


def _too_slow(*_: object) -> NoReturn:
    raise TooSlow


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Let this process take no more than BYTES beyond what it has; what is above is a MemoryError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = _address_space() + BYTES if STATM.exists() else soft
    if soft != resource.RLIM_INFINITY:
        most = min(most, soft)
    with suppress(ValueError, OSError):  # a system that does not bound it
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int:
    return int(STATM.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
