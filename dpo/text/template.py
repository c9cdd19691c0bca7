"""A conversation -> its text under a tokenizer's chat template, and what small conversations show of the template."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

from dpo.text.beside import THOUGHTS, thoughts_of
from dpo.text.calls import with_text
from dpo.text.messages import Message
from dpo.text.rejection import Rejection
from dpo.text.variants import training_variant

# Errors that a template may raise on an unexpected value.
FAILS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
THOUGHTS_LOST = "thoughts lost"  # the kind of a rejection

ASKED = {"role": "user", "content": "Where is Oslo?"}
ANSWERED = {"role": "assistant", "content": "In Norway."}


class Template:
    """The chat template of a tokenizer, as training uses it: in its variant where `variants.py` has one."""

    def __init__(self, tokenizer: Any, options: dict[str, Any]):
        self.tokenizer, self.options = tokenizer, options
        self.variant = training_variant(tokenizer.chat_template)

    def __call__(
        self,
        messages: list[Message],
        ask: bool = False,
        tools: list[Any] | None = None,
        first: int | None = None,
        **options: Any,
    ) -> str:
        """Return the text of a conversation.

        Args:
            ask: add the beginning of the assistant's next turn.
            first: index of the first message of the completion; None: of the assistant's first message.
            options: further arguments of the template, which go before those of all rows.
        """
        given = {**self.options, **options}
        if self.variant is not None:
            if first is None:
                roles = [message["role"] for message in messages]
                first = roles.index("assistant") if "assistant" in roles else len(roles)
            given |= {"chat_template": self.variant.template, "first_answer": first}
        return self.tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=ask, **given
        )

    def mentions(self, name: str) -> bool:
        """Tell whether the template names an option, as one that reads it does."""
        text = self.variant.template if self.variant is not None else self.tokenizer.chat_template
        return re.search(rf"\b{re.escape(name)}\b", str(text)) is not None

    def handed(self, messages: list[Message], name: str) -> list[Message] | Rejection:
        """Return messages as the template reads them: thoughts under the name that it reads, calls as it writes them.

        Args:
            name: of the side, for the message of a Rejection.
        """
        found = []
        for number, message in enumerate(messages, 1):
            if len(message) == 2:  # role and content
                found.append(message)
                continue
            if "tool_calls" in message and self.wants_text:
                message = with_text(message)
            thoughts = thoughts_of(message)
            if isinstance(thoughts, Rejection):
                return thoughts._replace(reason=f"message {number} of {name!r} {thoughts.reason}")
            if thoughts:
                if self.thoughts is None:
                    said = f"message {number} of {name!r} has thoughts beside its content, and the chat template reads "
                    said += f"none of {', '.join(THOUGHTS)}. Write them into the content, as <think>…</think>, or use "
                    return Rejection(f"{said}a template that reads them (tokenizer.chat_template)", THOUGHTS_LOST)
                rest = {field: value for field, value in message.items() if field not in THOUGHTS}
                message = {**rest, self.thoughts: thoughts[THOUGHTS[0]]}
            found.append(message)
        return found

    @cached_property
    def thoughts(self) -> str | None:
        """The name under which the template reads the thoughts of a message; None if it reads none."""
        marks = {name: f"Thought {number} of it." for number, name in enumerate(THOUGHTS)}
        for name, mark in marks.items():
            if mark in (self._tried([ASKED, {**ANSWERED, name: mark}]) or ""):
                return name
        return None

    @cached_property
    def wants_text(self) -> bool:
        """Whether the template joins the arguments of a call to its text, and so needs them as JSON text."""
        call = {"name": "look_up", "arguments": {"place": "Bergen"}}
        message = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}
        written = self._tried([ASKED, message])
        if written is not None and "{'place'" not in written:
            return False
        return '"Bergen"' in (self._tried([ASKED, with_text(message)]) or "")

    def _tried(self, messages: list[Message]) -> str | None:
        try:
            return self(messages)
        except (TemplateError, *FAILS):
            return None
