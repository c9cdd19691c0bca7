"""A row that cannot be read -> the same rejection with the lines that read it, each tried on the row itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from dpo.text.cell import decoded
from dpo.text.fields import Fields, is_about
from dpo.text.layouts import to_be_said
from dpo.text.lines import Lines, said, toml
from dpo.text.preference import PreferencePair
from dpo.text.proposals import proposals, value_at, words, words_of
from dpo.text.ranked import LISTS
from dpo.text.rejection import UNREAD, Rejection
from dpo.text.shapes import ASKED, Reading, no_prompt
from dpo.text.transcripts import is_transcript, turns_of
from dpo.text.verdict import number_of

Read = Callable[[Any, Reading], Any]  # a row and how it is read -> its pairs and what of it is not read
MOST = 48  # proposals that are tried on a row
WIDEST = 1000  # columns of a row that is looked at for advice
DEEPEST = 4  # columns that one proposal deals with beside its prompt and answers


class Tried(NamedTuple):
    """Lines that read a row, and the columns with a text that is not read then."""

    lines: Lines
    left: tuple[str, ...]


def no_layout(fields: Fields) -> Rejection:
    """Reject a row of no known layout."""
    known = to_be_said(fields)
    if known is not None:
        return Rejection(
            f"the row looks like {known.name}, whose verdict must be said{_between(fields.peek('preference'))}"
        )
    has = ", ".join(fields.names) or "nothing"
    sides = [side for side in ("chosen", "rejected") if side in fields]
    if len(sides) == 2:
        return no_prompt(fields)
    missing = "rejected" if "chosen" in sides else "chosen"
    null = ": it is null" if missing in fields.names else ""
    return Rejection(f"no {missing!r}{null} (the row has: {has}){_other_kind(fields)}")


def _between(verdict: Any) -> str:
    """Say that a mean of votes for 1 and 2 must be rounded."""
    number = number_of(verdict)
    means = number is not None and 1 < number < 2
    return f". No data.verdict reads {verdict}, a number between 1 and 2: write 1, 2, or 0 for a tie" if means else ""


def _other_kind(fields: Fields) -> str:
    """Say what a row is that is no preference at all."""
    inner = next((name for name in ("data", "rows", "train") if isinstance(fields.peek(name), list)), None)
    if inner is not None and all(isinstance(one, dict) for one in fields.row[inner]):
        return f". The rows seem to stand in {inner!r}: write that list alone into the file"
    if fields.first("label", "kto_tag") and fields.first("completion", "messages", "response", "conversations"):
        return ". A label for a single answer is no preference between two"
    if fields.first("messages", "conversations") and len(fields.row) == 1:
        return ". One conversation is no preference between two answers"
    return ""


def not_read(name: str) -> Rejection:
    """Reject a row for a column that belongs to its conversation, and that its reading does not use."""
    said = f"the column {name!r} would be lost: it may change the text, and rows of this form are read without it"
    return Rejection(said, UNREAD, name)


def advised(row: Mapping[str, Any], reading: Reading, rejection: Rejection, read: Read) -> Rejection:
    """Add to a rejection the lines that read the row, if there are any.

    Args:
        read: reads a row; every line is tried with it before it is printed.
    """
    if len(row) > WIDEST or any(row.get(side, "") is None for side in ("chosen", "rejected")):
        return rejection  # one broken row among others
    if rejection.column and not reading.columns:
        return rejection._replace(reason=f"{rejection.reason}. {_of_unread(row, reading, rejection.column, read)}")
    if "which data.columns." in rejection.reason or (reading.verdict and "data.verdict" in rejection.reason):
        return rejection  # what is written names no such column, or leaves out a value: that is said
    found = _known(row, reading, read) or _best(row, reading, read)
    if found is None:
        return rejection._replace(reason=f"{rejection.reason}{_in_general(row, reading)}")
    left = f" ({' and '.join(map(repr, found.left))} would not be read)" if found.left else ""
    return rejection._replace(reason=f"{rejection.reason}. Write {said(found.lines)}{left}")


def _of_unread(row: Mapping[str, Any], reading: Reading, column: str, read: Read) -> str:
    """Return how a column is read, if one line does that, and how columns are left out."""
    start = Lines(ignore=reading.ignore)
    options = (
        tried for line in _with(start, column, row) for tried in [_settled(row, line, reading, read, 0)] if tried
    )
    reads = next((f"{said(one.lines)} reads it, and " for one in options), "")
    if not reads and column in BEHIND and isinstance(row.get(column), str) and "prompt" in row:
        behind = Lines({"instruction": "prompt", "input": column}, ignore=reading.ignore)
        if _settled(row, behind, reading, read, 0):
            reads = f"{said(behind).removeprefix('data.')} under [data] reads it behind the prompt, and "
    ignoring = _settled(row, start._replace(ignore=(*reading.ignore, column)), reading, read, DEEPEST)
    names = ignoring.lines.ignore if ignoring else (*reading.ignore, column)
    return f"{reads}data.ignore = [{', '.join(map(toml, names))}] leaves it out knowingly"


def _is_list_of_lists(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1 and all(isinstance(one, list) for one in value)


BEHIND = ("context", "contexts", "documents", "passages", "passage")


def _in_general(row: Mapping[str, Any], reading: Reading) -> str:
    """Say what a line would look like for a row whose names tell nothing, if it may have two answers."""
    odd = next((name for name, value in row.items() if _is_list_of_lists(value) and "history" not in words(name)), None)
    if odd is not None:
        return f". Write the answers in {odd!r} as texts, or as objects with a text and a score each"
    texts = [name for name, value in Fields(row).row.items() if words_of(value) or isinstance(value, (list, Mapping))]
    if (
        reading.columns
        or to_be_said(Fields(row))
        or {"chosen", "rejected", "label", "kto_tag", *LISTS} & row.keys()
        or len(texts) < 2
    ):
        return ""
    if len(texts) == 2 and all(isinstance(row[name], str) for name in texts):
        return ". A pair needs two answers to one prompt, and the row seems to have one"
    return (
        ". If it has two answers, give their columns under [data]: "
        'columns = { prompt = "NAME", chosen = "NAME", rejected = "NAME" }'
    )


def _known(row: Mapping[str, Any], reading: Reading, read: Read) -> Tried | None:
    """Try the lines of a known layout whose verdict must be said."""
    known = to_be_said(Fields(row))
    if known is None or known.write is None:
        return None
    lines = known.write._replace(columns={**known.write.columns, **reading.columns}, ignore=reading.ignore)
    return _settled(row, lines, reading, read, 0)


def _best(row: Mapping[str, Any], reading: Reading, read: Read) -> Tried | None:
    """Return the surest proposal that reads the row; of two alike the one that leaves fewer words unread."""
    best, cost = None, None
    for number, lines in enumerate(islice(_joined(row, reading), MOST)):
        if cost is not None and lines.doubt > cost[0]:
            continue
        tried = _settled(row, lines, reading, read, DEEPEST)
        if tried is not None:
            found = (tried.lines.doubt, sum(_words_in(row.get(name)) for name in tried.left), number)
            if cost is None or found < cost:
                best, cost = tried, found
    return best


def _joined(row: Mapping[str, Any], reading: Reading) -> Iterator[Lines]:
    """Yield the proposals, each first together with what is written already."""
    for lines in proposals(row, reading):
        theirs = {one: name for one, name in lines.columns.items() if name not in reading.columns.values()}
        ignore = tuple(dict.fromkeys((*reading.ignore, *lines.ignore)))
        if reading.columns:
            yield lines._replace(columns={**theirs, **reading.columns}, ignore=ignore)
        yield lines._replace(ignore=ignore, doubt=lines.doubt + (1000 if reading.columns else 0))


def _settled(row: Mapping[str, Any], lines: Lines, reading: Reading, read: Read, depth: int) -> Tried | None:
    """Try lines on a row, and with them further ones for each column that stands in the way; None if it is not read."""
    choices = [one for one in lines.choices if _read_with(row, lines, one[0], reading, read) is not None]
    if lines.choices and not choices:
        return None
    found = _read_with(row, lines, choices[0][0] if choices else reading.verdict, reading, read)
    if found is None:
        return None
    (first, *_), unread = found
    if isinstance(first, Rejection) and first.kind == UNREAD:
        if not depth or not first.column:
            return None
        further = [*_with(lines, first.column, row), _leaving(lines, first.column)]
        return next(filter(None, (_settled(row, one, reading, read, depth - 1) for one in further)), None)
    if depth:
        for name in unread:
            for one in _with(lines, name, row):
                better = _settled(row, one, reading, read, depth - 1)
                if better is not None:
                    return better
    if not _says_what_it_names(row, lines, found.pairs):
        return None
    return Tried(lines._replace(choices=tuple(choices)), _left(row, lines, found))


def _read_with(row: Mapping[str, Any], lines: Lines, verdict: Any, reading: Reading, read: Read) -> Any:
    """Read a row with lines; None if it is refused for anything but a tie, or a column that is in the way."""
    found = read(row, reading._replace(columns=lines.columns, verdict=verdict, ignore=lines.ignore))
    refused = [pair for pair in found.pairs if isinstance(pair, Rejection) and pair.kind not in ("tie", UNREAD)]
    return None if refused else found


def _leaving(lines: Lines, column: str) -> Lines:
    return lines._replace(ignore=(*lines.ignore, column), doubt=lines.doubt + 400)


def _with(lines: Lines, column: str, row: Mapping[str, Any]) -> Iterator[Lines]:
    """Yield the lines that also read a column: a system text, tools, a history or an input, by its name."""
    parts = words(column)
    for ours, known in (("system", {"system", "sys", "preamble"}), ("tools", {"tools", "functions"})):
        if known & {*parts} and ours not in lines.columns and ours not in row:
            yield lines._replace(columns={**lines.columns, ours: column})
    ours = parts[-1] if parts else ""
    prompt = lines.columns.get("prompt", "prompt" if "prompt" in row else "")
    if ours in ("history", "input") and prompt and "instruction" not in lines.columns:
        rest = {name: theirs for name, theirs in lines.columns.items() if name != "prompt"}
        own = {} if column == ours else {ours: column}
        yield lines._replace(columns={"instruction": prompt, **own, **rest})
    elif ours == "history" and column != ours and "history" not in row:
        yield lines._replace(columns={**lines.columns, "history": column})


# Whether lines read what they name


def _says_what_it_names(row: Mapping[str, Any], lines: Lines, pairs: list[Any]) -> bool:
    """Tell whether the texts of the columns that lines name are in the pairs, and no answer is a whole transcript."""
    read = [pair for pair in pairs if isinstance(pair, PreferencePair)]
    if not read:
        return bool(lines.choices or lines.columns.keys() & {"winner", "scores", "ranks"})
    if any(is_transcript(_end(side)) for pair in read for side in pair[1:3]):
        return False
    whole = value_at(row, lines.columns.get("chosen", "chosen"))
    if any(isinstance(pair.prompt, str) and whole == f"{pair.prompt}{pair.chosen}" for pair in read):
        return False  # the prompt would be words with which both answers happen to begin
    texts = _text_of(read)
    named = (lines.columns.get(ours) for ours in ("prompt", "instruction", "chosen", "rejected", *JUDGED))
    return all(_unsaid(value_at(row, theirs), texts) == 0 for theirs in named if theirs)


JUDGED = ("response_a", "response_b", "system", "input", "history")


def _end(side: Any) -> Any:
    return side if isinstance(side, str) else side[-1]["content"]


def _text_of(pairs: list[PreferencePair]) -> str:
    sides = (side for pair in pairs for side in (*pair[:3], pair.lead))
    return "\n".join(side if isinstance(side, str) else "\n".join(m["content"] for m in side) for side in sides)


def _unsaid(value: Any, texts: str) -> int:
    """Count the words of a value that do not stand in the texts of a pair."""
    return sum(len(text.split()) for text in _texts(value) if text.strip() not in texts)


def _words_in(value: Any) -> int:
    return max(1, sum(len(text.split()) for text in _texts(value)))


def _texts(value: Any, deep: int = 12) -> Iterator[str]:
    """Yield the texts of a value: of a transcript its turns, of a message what it says."""
    value = decoded(value)
    if isinstance(value, str):
        yield from (turn["content"] for turn in turns_of(value)) if is_transcript(value) else (value,)
    elif isinstance(value, (Mapping, list)) and deep:
        inner = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, one in inner:
            if name not in ("role", "from", "type", "id"):
                yield from _texts(one, deep - 1)


def _left(row: Mapping[str, Any], lines: Lines, found: Any) -> tuple[str, ...]:
    """Return the columns with a text of several words that is neither named nor in the pairs."""
    texts = _text_of([pair for pair in found.pairs if isinstance(pair, PreferencePair)])
    used = {theirs.partition(".")[0] for theirs in lines.columns.values()} | {*lines.ignore, *ASKED[:1]}
    counted = {name.partition(".")[0].partition("[")[0] for name in found.unread}
    counted |= {name for name in row if is_about(str(name)) and words_of(row[name])}
    names = (name for name in row if name in counted and name not in used)
    return tuple(
        name for name in names if any(words_of(text) for text in _texts(row[name])) and _unsaid(row[name], texts)
    )
