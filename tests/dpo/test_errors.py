"""Texts of others, as they are shown."""

import json
import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from dpo.errors import visible

ANY_TEXT = st.text(st.characters(codec=None))  # surrogates, too


@settings(max_examples=500, deadline=None)
@given(ANY_TEXT)
def test_no_text_moves_the_cursor_or_hides_itself(text):
    shown = visible(text)
    assert not [c for c in shown if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    shown.encode("utf-8")


def test_an_escape_sequence_and_a_turned_around_name():
    assert visible("\x1b[2Jhello\x9b2J\u202egnp.exe\t\ud800") == "\\u001b[2Jhello\\u009b2J\\u202egnp.exe\\t\\ud800"
    assert visible("Grüße, 東京　👍\nzwei") == "Grüße, 東京　👍\nzwei"


@given(st.text())
def test_json_keeps_its_meaning(text):
    assert json.loads(visible(json.dumps([text], ensure_ascii=False, indent=1))) == [text]
