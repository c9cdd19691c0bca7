"""A row that cannot be read -> lines of a configuration that may read it, by the names and values of its columns.

They are proposals: `advice` tries each on the row itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Any

from dpo.text.cell import decoded
from dpo.text.fields import Fields, is_about
from dpo.text.lines import Lines
from dpo.text.ranked import BESIDE, LISTS, SCORES, TEXTS
from dpo.text.shapes import ASKED, Reading
from dpo.text.verdict import FIRST, PLACES, SECOND, choices_for, number_of

Words = tuple[str, ...]


def _opposites(text: str) -> list[tuple[Words, Words]]:
    pairs = (pair.split("/") for pair in text.split())
    return [(tuple(one.split("_")), tuple(other.split("_"))) for one, other in pairs]


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


PROMPT = ("prompt", "instruction", "question", "query", "input", "problem", "post", "user", "request", "context")
PROMPT += ("history", "dialogue", "messages", "conversation", "trajectory", "text", "goal", "body", "article")
# Words in the name of a column that is no prompt, whatever else its name says.
NO_PROMPT = _set("system sys comment comments author template negative title id ids name model note notes score rating")
NO_PROMPT |= _set(
    "critique feedback rationale explanation reason annotator reference answer response output completion"
)
NO_PROMPT |= _set("chosen rejected label category tag url date tools")
ANSWER = _set("answer response output completion reply generation summary text candidate message conversation")
ANSWER |= _set("answers responses outputs completions messages conversations")
# Words in the name of a column that says something of an answer, and is none.
NO_ANSWER = _set("model models author name user id ids idx index score scores rating ratings reward rank length len")
NO_ANSWER |= _set("tokens source annotator url date time label feedback critique rationale")
OPPOSITES = _opposites(
    "chosen/rejected chosen/reject preferred/dispreferred preferred/non_preferred preferred/nonpreferred "
    "preferred/not_preferred preferred/rejected better/worse good/bad accepted/rejected accept/reject "
    "positive/negative pos/neg winner/loser winning/losing win/lose win/loss best/worst selected/unselected "
    "upvoted/downvoted yw/yl y_w/y_l correct/incorrect preferred/unpreferred chosen/not_chosen"
)
# Words in the name of a list that holds no answers, or those of one side alone.
NO_LIST = frozenset(word for pair in OPPOSITES for phrase in pair for word in phrase) - {"best"}
NO_LIST |= _set("prompt question history context contexts documents passages tools functions messages tags images")
WORSE = [worse for _, worse in OPPOSITES]
WINNER = re.compile(
    r"(?i).*(winner|pref|preference|preferred)|labels?|(choice|chosen|selected|better|best)\w*|verdict|judge?ment"
)
BEST = re.compile(r"(?i)(best|winner|choice|chosen|preferred|selected|label)\w*")
HIGH = _set("score scores rating ratings reward rewards quality votes grade grades points likes elo")
LOW = _set("rank ranks ranking rankings")
UNKNOWN, LAST = 200, 300  # doubts: of a column with any name, and of one that usually holds no prompt


def proposals(row: Mapping[str, Any], reading: Reading) -> Iterator[Lines]:
    """Yield the lines that may read a row, roughly the surest first."""
    fields = Fields(row)
    yield Lines()
    if "winner" in reading.columns and not reading.verdict:
        first, second = (reading.columns.get(f"response_{side}", "") for side in "ab")
        yield Lines(choices=choices_for(value_at(row, reading.columns["winner"]), first, second))
    for prompt in _prompts(fields, set()):
        if prompt.columns:
            yield prompt
    for good, bad in [*_twins(fields, OPPOSITES), *_one_is_bad(fields)]:
        for prompt in _prompts(fields, {good, bad}):
            yield _sides(fields, prompt, good, bad)
    yield from _judged(fields, reading)
    for key, answers in _lists(fields):
        for prompt in _prompts(fields, {key}):
            yield from _of_list(fields, key, answers, prompt)
    for name, value in row.items():
        if name in ("chosen", "rejected") or words_of(value):
            yield Lines(ignore=(name,), doubt=400)


def words(name: str) -> Words:
    """Split a name into words in small letters: "nonPreferred.text1" has non, preferred, text and 1."""
    return tuple(re.findall(r"[a-z]+|\d+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()))


def words_of(value: Any) -> int:
    """Count the words of the beginning of a text; 0 of anything else, and of a name."""
    count = len(value[:200].split()) if isinstance(value, str) else 0  # the text may be long
    return count if count > 2 else 0


def _paths(fields: Fields) -> Iterator[tuple[str, Any]]:
    """Yield columns and the fields of objects with their values."""
    for name, value in fields.row.items():
        yield name, decoded(value)
    for name, value in fields.row.items():
        inner = decoded(value)
        if isinstance(inner, Mapping):
            yield from ((f"{name}.{key}", decoded(one)) for key, one in inner.items() if one is not None)


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """Return the value of a path such as "answers.0.text"; None if there is none."""
    value: Any = row
    for name in [path] if path in row else path.split("."):
        value = decoded(value)
        if isinstance(value, list):
            value = dict(enumerate(value)).get(int(name)) if name.isdigit() else None
        else:
            value = value.get(name) if isinstance(value, Mapping) else None
    return value


# The prompt


def _prompts(fields: Fields, used: set[str]) -> list[Lines]:
    """Return lines that name the prompt, and first those without a name where the row has one that is read."""
    found: list[Lines] = []
    known = fields.first(*ASKED)
    if known in ("prompt", "instruction") or (known and {"history", "input"} & fields.row.keys()):
        found.append(Lines())
    for name, value in _paths(fields):
        doubt = _doubt(name, value)
        if doubt is not None and not any(name == one or one.startswith(f"{name}.") for one in used):
            when = "if that is the prompt" if doubt >= UNKNOWN else ""
            found.append(Lines({"prompt": name}, when=when, doubt=doubt))
    if known or {"messages", "conversations", "conversation"} & fields.row.keys():
        found.append(Lines(doubt=len(PROMPT)))
    return sorted(found, key=lambda lines: lines.doubt)[:6] or [Lines()]


def _doubt(name: str, value: Any) -> int | None:
    """Tell how doubtful it is that a column holds the prompt: 0 is sure; None if it does not."""
    parts, last = words(name), name.rpartition(".")[2].lower()
    talk = is_talk(value)
    if not (talk or isinstance(value, str)) or not NO_PROMPT.isdisjoint(parts) or not value:
        return None
    if last in PROMPT:
        return PROMPT.index(last) + 1
    if talk:
        return len(PROMPT) + 2
    if words_of(value) and not is_about(name):
        worded = [number for number, word in enumerate(PROMPT) if word in parts]
        return len(PROMPT) + 3 + worded[0] if worded else UNKNOWN
    return LAST if words_of(value) and parts == ("source",) else None


def is_talk(value: Any) -> bool:
    """Tell whether a value is a list of messages."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, Mapping) and ("content" in first or "value" in first) and bool({"role", "from"} & {*first})


# Two answers


def _twins(fields: Fields, pairs: Iterable[tuple[Words, Words]]) -> Iterator[tuple[str, str]]:
    """Yield two columns, or fields of an object, whose names differ only by two opposite words."""
    paths = {words(name): name for name, value in reversed(list(_paths(fields))) if _is_answer(name, value)}
    for one, other in pairs:
        for parts, name in reversed(paths.items()):
            for at in range(len(parts) - len(one) + 1):
                turned = (*parts[:at], *other, *parts[at + len(one) :])
                if parts[at : at + len(one)] == one and turned in paths:
                    yield name, paths[turned]


def _is_answer(name: str, value: Any) -> bool:
    """Tell whether a column may hold an answer, and not its author, its model or its score."""
    parts = [word for word in words(name) if word not in SIDE_WORDS]
    about = not NO_ANSWER.isdisjoint(parts) and ANSWER.isdisjoint(parts)
    of_one = bool(parts) and parts[-1] in NO_ANSWER
    return isinstance(value, (str, list, Mapping)) and bool(value) and not about and not of_one


PAIRS = [((one,), (other,)) for one, other in PLACES]
SIDE_WORDS = frozenset(word for pair in PLACES for word in pair)


def _one_is_bad(fields: Fields) -> list[tuple[str, str]]:
    """Return (better, worse) where the worse answer alone is named as that, as in response and rejected_response."""
    found = []
    for name, value in fields.row.items():
        parts = words(name)
        bad = next((worse for worse in WORSE if parts[: len(worse)] == worse or parts[-len(worse) :] == worse), None)
        if bad is None or not _is_answer(name, value):
            continue
        rest = tuple(word for word in parts if word not in bad)
        for other, answer in fields.row.items():
            plain = words(other) == rest if rest else other.lower() in ANSWER - {"text"}
            if plain and isinstance(answer, type(value)) and not is_talk(answer):
                found.append((other, name))
    return found


def _sides(fields: Fields, prompt: Lines, good: str, bad: str) -> Lines:
    paths = dict(_paths(fields))
    chosen, rejected = (_reaching(name, paths.get(name)) for name in (good, bad))
    first = any(path == f"{name}.0" for path, name in ((chosen, good), (rejected, bad)))
    sides = {"chosen": chosen, "rejected": rejected}
    columns = {ours: theirs for ours, theirs in {**prompt.columns, **sides}.items() if ours != theirs}
    return prompt._replace(columns=columns, when="if the first of each is meant" if first else prompt.when)


def _reaching(name: str, value: Any) -> str:
    """Return the path to the text of an answer that is an object or a list of texts; other names as they are."""
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        return f"{name}.0"
    text = next((text for text in TEXTS if isinstance(value, Mapping) and isinstance(value.get(text), str)), None)
    return f"{name}.{text}" if text is not None and "role" not in value else name


def _judged(fields: Fields, reading: Reading) -> Iterator[Lines]:
    """Yield lines for two answers and a verdict."""
    known = [("response_a", "response_b")] if {"response_a", "response_b"} <= fields.row.keys() else []
    known += [("conversation_a", "conversation_b")] if {"conversation_a", "conversation_b"} <= fields.row.keys() else []
    pairs = [*known, *(pair for pair in _twins(fields, PAIRS) if pair not in known)][:4]
    for first, second in pairs:
        named = {} if (first, second) in known else {"response_a": first, "response_b": second}
        named = {ours: theirs for ours, theirs in named.items() if ours != theirs}
        for (winner, value, doubt), prompt in product(
            _winners(fields, first, second), _prompts(fields, {first, second})
        ):
            if winner in prompt.columns.values():
                continue
            columns = {**prompt.columns, **named, **({} if winner == "winner" else {"winner": winner})}
            choices = () if reading.verdict or _plain_winner(fields, value) else choices_for(value, first, second)
            yield prompt._replace(columns=columns, choices=choices, doubt=prompt.doubt + doubt)


def _winners(fields: Fields, first: str, second: str) -> list[tuple[str, Any, int]]:
    """Return columns that may hold the verdict, with their values and how doubtful they are."""
    names = {first.lower(), second.lower(), *FIRST, *SECOND}
    found = []
    for name, value in fields.row.items():
        single = isinstance(value, (int, float)) or (
            isinstance(value, str) and 0 < len(value[:200].split()) <= 3 and value.lstrip()[0] not in "[{"
        )
        single = single or name == "winner"
        if single and name not in (first, second):
            if name == "winner" or WINNER.fullmatch(name):
                found.append((name, value, 0 if name == "winner" else 1))
            elif isinstance(value, str) and value.strip().lower() in names and len(value.strip()) > 1:
                found.append((name, value, 2))
    return sorted(found, key=lambda one: one[2])[:3]


def _plain_winner(fields: Fields, value: Any) -> bool:
    """Tell whether a verdict is read without `data.verdict`."""
    text = str(value).strip()
    models = [str(fields.peek(f"model_{side}")).strip() for side in "ab"]
    return text.lower() in FIRST | SECOND or text in models


# Several answers


def _lists(fields: Fields) -> list[tuple[str, list[Any]]]:
    lists = {name: decoded(value) for name, value in fields.row.items()}
    kept = {n: v for n, v in lists.items() if isinstance(v, list) and len(v) > 1 and not is_talk(v)}
    kept = {n: v for n, v in kept.items() if n not in BESIDE and NO_LIST.isdisjoint(words(n))}
    return [(n, v) for n, v in kept.items() if isinstance(v[0], (str, Mapping))][:4]


def _of_list(fields: Fields, key: str, answers: list[Any], prompt: Lines) -> Iterator[Lines]:
    """Yield lines for a list of answers: with scores inside or beside it, an index of the best, or its order."""
    named = {**prompt.columns, **({} if key in LISTS else {"completions": key})}
    objects = [answer for answer in answers if isinstance(answer, Mapping)]
    if objects == answers and all({*one} & {*SCORES} and {*one} & {*TEXTS} for one in objects):
        yield prompt._replace(columns=named)
    for name, value in fields.row.items():
        numbers = decoded(value)
        if isinstance(numbers, list) and len(numbers) == len(answers) and None not in map(number_of, numbers):
            ours = "ranks" if LOW & {*words(name)} else "scores" if HIGH & {*words(name)} else None
            if ours is not None:
                yield prompt._replace(columns={**named, **({} if name == ours else {ours: name})})
        elif BEST.fullmatch(name) and number_of(value) in range(len(answers)):
            winner = {} if name == "winner" else {"winner": name}
            choices = (("index", "if it counts from 0"),)
            yield prompt._replace(columns={**named, **winner}, choices=choices, doubt=prompt.doubt + 3)
    if all(isinstance(answer, str) for answer in answers) and not fields.first(*BESIDE):
        columns = {**prompt.columns, "chosen": f"{key}.0", "rejected": f"{key}.{len(answers) - 1}"}
        when = "if the first of its answers is the best and the last the worst"
        yield prompt._replace(columns=columns, when=when, doubt=prompt.doubt + 100)
