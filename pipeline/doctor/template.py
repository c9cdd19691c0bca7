"""Checks of a chat template, by rendering small test conversations."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from jinja2 import TemplateError

from dpo.text.bounds import TooSlow, bounded_memory, bounded_time
from dpo.text.template import FAILS, Template
from pipeline.doctor.findings import Finding

Message = dict[str, Any]

USER, LATER = {"role": "user", "content": "Where is Oslo?"}, {"role": "user", "content": "And Rome?"}
ANSWER = {"role": "assistant", "content": "In Norway."}
THOUGHT = {"role": "assistant", "content": "<think>\nA capital.\n</think>\n\nIn Norway."}
SYSTEM = {"role": "system", "content": "Be brief, Quentin."}
PADDED = {"role": "assistant", "content": "  In\n\n Norway. \n"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "zyx_lookup", "arguments": {"place": "Oslo"}}}],
}
TOOL = {"type": "function", "function": {"name": "zyx_lookup", "description": "Looks up.", "parameters": {}}}


class Probe:
    """A template under test, as training uses it."""

    def __init__(self, tokenizer: Any, options: dict[str, Any]):
        self.tokenizer, self.template = tokenizer, Template(tokenizer, options)
        self.refused = ""  # message of the last refusal

    def __call__(self, messages: list[Message], ask: bool = False, tools: list[Any] | None = None) -> str | None:
        """Render a conversation; None if the template refuses it."""
        try:
            with bounded_time(), bounded_memory():
                return self.template(messages, ask, tools)
        except (TemplateError, TooSlow, MemoryError, *FAILS) as error:
            self.refused = str(error) or type(error).__name__
            return None


def examine_template(tokenizer: Any, options: dict[str, Any], wanted: dict[str, int]) -> list[Finding]:
    """Find faults of a chat template that affect preference training.

    Args:
        options: further arguments of the template (tokenizer.template_options).
        wanted: number of pairs with a "system" message, "tools", "calls" or "several_turns". A fault that affects no
            pair is only a note.
    """
    probe = Probe(tokenizer, options)
    checks: list[Callable[[Probe, dict[str, int]], Finding | None]] = [
        _refuses, _unstable, _unstable_later, _date, _system, _strips, _no_question, _tools, _calls, _markers, _end,
    ]  # fmt: skip
    findings = [check(probe, wanted) for check in checks]
    return [finding for finding in findings if finding is not None]


def _refuses(probe: Probe, wanted: dict[str, int]) -> Finding | None:
    if probe([USER], ask=True) is not None and probe([USER, ANSWER]) is not None:
        return None
    fix = "Fix the template, or set tokenizer.chat_template to another one."
    return Finding("template-refuses", "error", "the chat template refuses a plain question and answer",
                   f"Its message: {probe.refused}.", fix)  # fmt: skip


def _unstable(probe: Probe, wanted: dict[str, int]) -> Finding | None:
    for answer in (ANSWER, THOUGHT):
        question, whole = probe([USER], ask=True), probe([USER, answer])
        if question is None or whole is None or whole.startswith(question):
            continue
        at = next((i for i, (a, b) in enumerate(zip(question, whole, strict=False)) if a != b), len(whole))
        return Finding(
            "template-not-prefix-stable",
            "error",
            "the chat template renders a prompt differently once an answer follows",
            f"Without an answer it writes {question[at - 20 if at > 20 else 0 :]!r}, with an answer "
            f"{whole[at - 20 if at > 20 else 0 : at + 40]!r}. The start of the answer is then unknown, so such rows "
            "are rejected. A trainer that cuts by length would score the wrong tokens.",
            "Use a training variant of the template, or an option that the template reads, for example "
            "tokenizer.template_options = { enable_thinking = false }.",
        )
    return None


def _unstable_later(probe: Probe, wanted: dict[str, int]) -> Finding | None:
    for answer in (ANSWER, THOUGHT):
        early, late = probe([USER, answer]), probe([USER, answer, LATER], ask=True)
        if early is None or late is None or late.startswith(early):
            continue
        if probe([USER], ask=True) is None:
            return None
        return Finding(
            "template-rewrites-turns",
            "warning" if wanted.get("several_turns") else "note",
            "the chat template renders earlier turns differently once another turn follows",
            f"One turn ends with {early[-60:]!r}, but the text of two turns does not begin with the text of one (the "
            "template may drop thoughts). Completions of several turns are rejected.",
            "Split such completions into one pair per turn, or use a training variant of the template.",
            number=wanted.get("several_turns") or None,
        )
    return None


def _date(probe: Probe, wanted: dict[str, int]) -> Finding | None:
    """Find today's date in the output of a template that reads it."""
    formats = re.findall(r"""strftime_now\(\s*['"](.+?)['"]""", str(probe.tokenizer.chat_template))
    written = f"{probe([USER], ask=True)}{probe([SYSTEM, USER], ask=True)}"
    dates = [today for today in (datetime.now().strftime(style) for style in formats) if today in written]
    if not dates:
        return None
    return Finding(
        "template-date",
        "warning",
        "the chat template writes today's date into every prompt",
        f"It writes {dates[0]!r}. Tokens prepared on another day differ, so the reference must score them again, and "
        "the model learns the dates of its training.",
        'Set tokenizer.template_options = { date_string = "26 Jul 2024" } if the template reads date_string; otherwise '
        "edit the template.",
    )


def _system(probe: Probe, wanted: dict[str, int]) -> Finding | None:
    if probe([USER], ask=True) is None:
        return None
    written = probe([SYSTEM, USER], ask=True)
    count = wanted.get("system", 0)
    severity = "error" if count else "note"
    if written is None:
        return Finding(
            "template-refuses-system",
            severity,
            "the chat template refuses a system message",
            f"Its message: {probe.refused}. Rows with a system message are rejected.",
            "Put the system text before the first user message in the data, or use another template.",
            number=count or None,
        )
    if SYSTEM["content"] in written:
        return None
    return Finding(
        "template-drops-system",
        severity,
        "the chat template leaves out the system message",
        "The text of the system message does not appear in the prompt.",
        "Put the system text before the first user message in the data, or use another template.",
        number=count or None,
    )


def _strips(probe: Probe, wanted: dict[str, int]) -> Finding | None:
    written = probe([USER, PADDED])
    if written is None or PADDED["content"] in written:
        return None
    return Finding(
        "template-strips",
        "warning",
        "the chat template changes the text of an answer",
        f"{PADDED['content']!r} does not appear unchanged: blanks and line breaks at the start and end of an answer "
        "are lost. Answers that differ only there become equal and are rejected, and the model cannot learn them.",
        "If your answers begin or end with blanks, remove `| trim` or `.strip()` from the template; otherwise this is "
        "harmless.",
    )


def _no_question(probe: Probe, wanted: dict[str, int]) -> Finding | None:
    bare, asked = probe([USER]), probe([USER], ask=True)
    if bare is None or asked is None or bare != asked:
        return None
    return Finding(
        "template-asks-nothing",
        "warning",
        "the chat template has no generation prompt",
        "Its output with add_generation_prompt is the same as without. The header of the assistant's turn is therefore "
        "scored as part of the answer, and generation has to produce it.",
        "Add a branch for add_generation_prompt to the template.",
    )


def _tools(probe: Probe, wanted: dict[str, int]) -> Finding | None:
    count = wanted.get("tools", 0)
    if not count or "zyx_lookup" in (probe([USER], ask=True, tools=[TOOL]) or "zyx_lookup"):
        return None
    return Finding(
        "template-ignores-tools",
        "error",
        "the chat template leaves out the tools of the rows",
        "A conversation renders the same with and without a tool, so the model never sees which tools it can call.",
        "Use a template that renders tools.",
        number=count,
    )


def _calls(probe: Probe, wanted: dict[str, int]) -> Finding | None:
    count = wanted.get("calls", 0)
    written = probe([USER, CALL]) if count else None
    if written is None or "zyx_lookup" in written:
        return None
    return Finding(
        "template-drops-calls",
        "error",
        "the chat template leaves out tool calls",
        "A message with tool_calls is rendered without them, often as an empty turn. The model would learn to say "
        "nothing where it should call a tool.",
        "Use a template that renders tool_calls.",
        number=count,
    )


def _markers(probe: Probe, wanted: dict[str, int]) -> Finding | None:
    """Find turn markers <|name|> of the template that the tokenizer splits like ordinary text."""
    written = probe([SYSTEM, USER, ANSWER]) or probe([USER, ANSWER]) or ""
    split = {}
    for marker in dict.fromkeys(re.findall(r"<\|\w+\|>", written)):
        ids = probe.tokenizer(marker, add_special_tokens=False)["input_ids"]
        if len(ids) > 1:
            split[marker] = len(ids)
    if not split:
        return None
    shown = ", ".join(f"{marker!r} is {count} tokens" for marker, count in split.items())
    return Finding(
        "markers-not-tokens",
        "warning",
        "the chat template's markers are ordinary text to the tokenizer",
        f"{shown}. A model that was trained with these markers has one token for each, so this template or this "
        "tokenizer is not the model's own.",
        "Use the model's own tokenizer and template. A model that never saw the markers learns them as text.",
    )


def _end(probe: Probe, wanted: dict[str, int]) -> Finding | None:
    tokenizer, written = probe.tokenizer, probe([USER, ANSWER])
    if written is None:
        return None
    tail = written[written.rfind(ANSWER["content"]) + len(ANSWER["content"]) :].strip()
    closing = tokenizer.convert_tokens_to_ids(tail) if tail else None
    known = isinstance(closing, int) and closing not in (tokenizer.unk_token_id, tokenizer.eos_token_id)
    if not known or tail not in tokenizer.get_vocab():
        return None
    return Finding(
        "template-other-end",
        "warning",
        "the chat template ends a turn with a token that is not the tokenizer's end token",
        f"A turn ends with {tail!r}; the end token is {tokenizer.eos_token!r}. Answers are trained to end with both, "
        "and wherever the model is served, the token that stops generation must be configured.",
        f"Set tokenizer.eos_token = {tail!r}.",
    )
