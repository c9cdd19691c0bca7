"""The columns of a row: which are read, which may be left, and which are read by nobody."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from dpo.text.calls import too_deep
from dpo.text.cell import OPENS, decoded, messages_in
from dpo.text.messages import READ
from dpo.text.rejection import Rejection

Row = Mapping[str, Any]

# Names of columns, and of fields of messages and answers, that say something about a text and are no part of it.
ABOUT = re.compile(
    r"([\w-]*[-_])?(id|ids|idx|uuid|hash|index|model|models|source|sources|score|scores|rating|ratings|reward|rewards|margin"
    r"|rank|length|len|tokens|logps?|probability|time|timestamp|tstamp|date|at|url|license|version|name|category"
    r"|categories|subset|dataset|datasets|lang|language|split|turn|turns|judge|annotator|worker|batch|domain|tag|tags"
    r"|task|type|kind|difficulty|topic|seed|temperature|count|status|flag|meta|metadata|policy|confidence)[-_]?\w?"
    r"|(score|rating|reward|rank|model|num|n|is|has|id|__index_level)_\w+|created|generator|strength|safe|toxicity|lang\w*"
    r"|created\w*|tree_state"
)
# Names of columns whose text belongs to the conversation. One that is not read changes what is learnt.
CHANGES_TEXT = frozenset(
    (
        *("system", "system_prompt", "system_message", "instruction", "input", "question", "query", "context"),
        *("contexts", "documents", "passages", "passage", "history", "messages", "conversation", "conversations"),
        *("functions", "tools", "tool_calls", "tools_json", "available_tools", "images", "image", "videos"),
        *(
            "video",
            "audios",
            "audio",
            "chat_template_kwargs",
            "prefix",
            "prefill",
            "chosen_prefix",
            "initial_reason_steps",
        ),
        *("prompt", "chosen", "rejected", "reasoning", "thinking", "reasoning_content"),
        *("systemprompt", "sys_prompt", "system_instruction", "systeminstruction", "custom_system_prompt", "preamble"),
        *("chat_history", "chathistory", "conversation_history", "dialog", "dialogue", "tools_list", "persona"),
        *("turns", "conversation_turns", "previous_turns", "previous_turn", "prev_turns", "prev_turn", "prior_turns"),
        *("prior_turn", "image_url", "image_urls", "image_path", "image_paths"),
    )
)
# The last word of names that are those of texts, whatever stands before it, and the first of those of media.
TEXTUAL = re.compile(
    r"([\w-]*[-_])?(instructions?|contexts?|examples?|rubrics?|prompts?|questions?|quer(y|ies)|system|history|turns?"
    r"|messages?|texts?|source|task|topic|policy)|(image|video|audio)s?[-_]\w+"
)
NUMBER = re.compile(r"\s*(-?\d+(\.\d+)?|true|false)\s*", re.IGNORECASE)  # as formats without types have it
MOST_WORDS = 4  # of a value that only says something about the texts


@lru_cache(maxsize=4096)
def is_about(name: str) -> bool:
    """Tell whether a column only says something about the texts. Rows of a file ask for the same names again."""
    return ABOUT.fullmatch(name.rpartition(".")[2].lower()) is not None


class Fields:
    """The columns of one row, where null counts as missing. A reading takes some of them; the others are left over.

    A cell whose text is a list of messages is that list. One whose text should be messages, and is not, is a fault of
    the row where its column is taken.
    """

    def __init__(self, row: Row, replaced: Row | None = None):
        self.row: dict[str, Any] = {}
        self.written: set[str] = set()  # columns whose text is messages
        self.names = list(map(str, row))
        self.taken: set[str] = set()
        self.replaced = replaced or {}  # columns in whose place data.columns puts others
        self._faults: dict[str, Rejection] = {}
        for name, value in row.items():
            if value is not None:
                self.row[name] = self._opened(name, value) if isinstance(value, str) and value[:1] in OPENS else value

    def _opened(self, name: Any, text: str) -> Any:
        """Return the value that the text of a cell stands for."""
        found = messages_in(text)
        if isinstance(found, Rejection):
            self._faults[name] = found._replace(reason=f"{name!r} {found.reason}")
            return text
        if found is not None:
            self.written.add(name)
            return found
        if name in STRUCTURED:
            return decoded(text)
        return _object_with_messages(text) if name in ("input", "context", "prompt") else text

    def fault(self, of_any: bool = False) -> Rejection | None:
        """Return the fault of a column that is taken, or of any column; or None."""
        return next((fault for name, fault in self._faults.items() if of_any or name in self.taken), None)

    def __contains__(self, name: str) -> bool:
        return name in self.row

    def peek(self, name: str) -> Any:
        """Return the value of a column, or None, without using it."""
        return self.row.get(name)

    def take(self, *names: str) -> Any:
        """Return the value of the first column that is there, and note that it is read; None if there is none."""
        for name in names:
            if name in self.row:
                self.taken.add(name)
                return self.row[name]
        return None

    def first(self, *names: str) -> str | None:
        """Return the name of the first column that is there, or None."""
        return next((name for name in names if name in self.row), None)

    def left_over(self, leaves: frozenset[str]) -> list[str]:
        """Return the columns with content that are neither taken, nor in `leaves`, nor about the texts."""
        old = [name for name, value in self.replaced.items() if name not in leaves and value not in (None, "", [], {})]
        return old + [
            name
            for name, value in self.row.items()
            if name not in self.taken
            and name.partition(".")[0] not in leaves
            and value not in ("", [], {})
            and not _says_about(str(name), value)
        ]


@lru_cache(maxsize=4096)
def _is_textual(name: str) -> bool:
    return TEXTUAL.fullmatch(name.rpartition(".")[2].lower()) is not None


def holds_text(name: str, value: Any) -> bool:
    """Tell whether a value whose name sounds as if it only said something about the texts may be one of them.

    A long text may be one, and anything but numbers and single words under the name of a text; also an object, such as
    `metadata`, with a column inside that belongs to the conversation.
    """
    if isinstance(value, str):
        return len(value.split(None, MOST_WORDS)) > (1 if _is_textual(name) else MOST_WORDS)
    if isinstance(value, Mapping):
        return not too_deep(value) and any(
            str(key).lower() in CHANGES_TEXT or holds_text(str(key), inner) for key, inner in value.items()
        )
    if isinstance(value, list):
        return not too_deep(value) and any(holds_text(name, inner) for inner in value)
    return False


# Columns that only ever hold lists or objects; formats whose cells are texts have them as JSON.
STRUCTURED = frozenset(
    (
        *("messages", "conversations", "conversation", "conversation_a", "conversation_b", "chosen_messages"),
        *("rejected_messages", "chosen_conversations", "rejected_conversations", "preferred_output"),
        *("non_preferred_output", "completions", "responses", "answers", "generations", "scores", "ratings"),
        *("rewards", "ranks", "history"),
    )
)


def _object_with_messages(text: str) -> Any:
    """Return the object that a text stands for if it has messages or answers inside; else the text."""
    if not any(f'"{name}"' in text or f"'{name}'" in text for name in ("messages", "replies")):
        return text
    found = decoded(text)
    return found if isinstance(found, Mapping) and not {"messages", "replies"}.isdisjoint(found) else text


def mapped(row: Row, columns: Mapping[str, str]) -> Row | Rejection:
    """Rename the columns of a row; a dot reaches into an object ("answers.best") or a list ("answers.0").
    A missing column is a Rejection.

    What else an object holds stays, as columns with a dot in their names. `tools` and `system` that stand beside the
    prompt in its object are read with it.
    """
    found = {}
    for ours, theirs in columns.items():
        value: Any = row
        for name in [theirs] if theirs in row else theirs.split("."):
            value = _by_index(decoded(value))
            if not isinstance(value, Mapping) or name not in value:
                return Rejection(
                    f"no column {theirs!r}, which data.columns.{ours} names (the row has: {', '.join(map(str, row))})"
                )
            value = value[name]
        # Rows with an instruction may also have an input and a history, which the reading of that name knows.
        found["instruction" if (ours, theirs) == ("prompt", "instruction") else ours] = value
    opened = {theirs.partition(".")[0] for theirs in columns.values() if theirs not in row}
    rest = {name: value for name, value in row.items() if name not in (*columns.values(), *columns, *opened)}
    for name, value in _inside(row, opened):
        if name not in columns.values():
            rest[name] = value
    beside = columns.get("prompt", "").rpartition(".")[0]
    for name in ("tools", "system"):
        if (
            beside in opened
            and name not in columns
            and rest.get(name) is None
            and rest.get(f"{beside}.{name}") is not None
        ):
            found[name] = rest.pop(f"{beside}.{name}")
    return {**rest, **found}


def replaced(row: Row, columns: Mapping[str, str]) -> Row:
    """Return the columns with names of ours that are not read, since data.columns puts others in their place."""
    opened = {theirs.partition(".")[0] for theirs in columns.values() if theirs not in row}
    return {ours: row[ours] for ours in columns if ours in row and ours not in (*columns.values(), *opened)}


def _inside(row: Row, opened: set[str]) -> Iterator[tuple[str, Any]]:
    """Yield the fields of objects by their whole names, such as "answers.best"."""
    for top in sorted(opened):
        value = _by_index(decoded(row[top]))
        if isinstance(value, Mapping):
            yield from ((f"{top}.{name}", inner) for name, inner in value.items())


def _by_index(value: Any) -> Any:
    """Return a list as an object whose names are its indices from "0" on; anything else unchanged."""
    return {str(number): one for number, one in enumerate(value)} if isinstance(value, list) else value


def of_messages(where: str, messages: Any) -> Iterator[str]:
    """Yield the fields of messages that are not read, such as "chosen[].audio"."""
    for message in messages if isinstance(messages, list) else [messages]:
        if isinstance(message, Mapping) and len(message) > 2:
            for name, value in message.items():
                if name not in READ and value not in (None, "", [], {}) and not _says_about(str(name), value):
                    yield f"{where}[].{name}"
        for part in _parts(message):
            for name, value in part.items():
                if name not in OF_PARTS and value not in (None, "", [], {}) and not _says_about(str(name), value):
                    yield f"{where}[].content[].{name}"


def _says_about(name: str, value: Any) -> bool:
    """Tell whether a value only says something about the texts: by its name, and because it is none of them."""
    if not is_about(name) or isinstance(value, int | float) or (isinstance(value, str) and NUMBER.fullmatch(value)):
        return is_about(name)
    return name.rpartition(".")[2].lower() not in CHANGES_TEXT and not holds_text(name, value)


def _parts(message: Any) -> list[Mapping[str, Any]]:
    content = message.get("content") if isinstance(message, Mapping) else None
    return [part for part in content if isinstance(part, Mapping)] if isinstance(content, list) else []


OF_PARTS = frozenset(
    ("type", "text", "value", "thinking", "signature", "thought", "input", "tool_use_id", "content", "is_error")
)  # fields of the parts of a content that are read, or that no template writes
