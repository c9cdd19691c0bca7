"""`ray-align --keys` -> the list of all keys in examples/guides/configuration.md, and that of a run's free keys.

python -m tests.keys_guide     writes it
"""

from __future__ import annotations

import re
import textwrap

from pipeline.claim import FREE
from pipeline.config.keys import describe_keys
from tests.places import ROOT

GUIDE = ROOT / "examples" / "guides" / "configuration.md"
KEYS, FREE_KEYS = ("<!-- keys -->", "<!-- end of the keys -->"), ("<!-- free -->", "<!-- end of free -->")
KEY = re.compile(r"(?P<key>\w+) = (?P<default>.*?)(?:\s+# (?P<about>.*))?$")


def listing() -> str:
    """Return every section as a heading, its meaning and a list of its keys."""
    return "\n".join(line for paragraph in describe_keys().splitlines() for line in _shown(paragraph))


def _shown(line: str) -> list[str]:
    """Return a line of `--keys` as lines of Markdown."""
    section, kind, key = re.match(r"\[(\w+)\]  # (.*)", line), re.match(r"  (\S+) +(.*)", line), KEY.match(line)
    if section is not None:
        return [f"### `[{section[1]}]`", "", *_wrapped(section[2]), ""]
    if kind is not None:
        return _wrapped(f"- `{kind[1]}`: {_marked(kind[2])}")
    if key is not None:
        about = f" {key['about'][0].upper()}{key['about'][1:]}" if key["about"] is not None else ""
        return _wrapped(f"- **`{key['key']}`** = {_value(key['default'])}.{about}")
    return [line, ""] if line else [""]


def _marked(keys: str) -> str:
    return re.sub(r"\w+ = (\.\.\. \(must be given\)|[^,]+)", lambda key: f"`{key[0]}`", keys)


def _value(default: str) -> str:
    """Return a default as code, or the words for none."""
    words = {"... (must be given)": "*must be given*", "(unset)": "*unset*"}
    return words.get(default, f"`{default}`")


def _wrapped(text: str) -> list[str]:
    kept = re.sub(r"`[^`]*`", lambda span: span[0].replace(" ", "\0"), text)
    indent = "  " if text.startswith("- ") else ""
    lines = textwrap.wrap(kept, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\0", " ") for line in lines]


def free_keys() -> str:
    """Return the keys that may change between two runs of one name, a section a line."""
    lines = [f"- `[{name}]`: {', '.join(f'`{key}`' for key in sorted(keys))}" for name, keys in FREE.items()]
    return "\n".join(part for line in lines for part in _wrapped(line))


def with_lists(page: str) -> str:
    """Return the page with both lists as they are now."""
    for (begin, end), text in ((KEYS, listing()), (FREE_KEYS, free_keys())):
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"
    return page


def main() -> None:
    GUIDE.write_text(with_lists(GUIDE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
