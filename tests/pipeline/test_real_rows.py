"""Every row of the real files is read as a pair, by its shape alone."""

import pytest

from dpo.pairs import PreferencePair, read_pair
from pipeline.store.rows import read_rows
from tests.e2e.running import REAL_DATA

pytestmark = pytest.mark.skipif(not REAL_DATA.is_dir(), reason="the real preference pairs are not on this machine")


@pytest.mark.parametrize(
    ("name", "count", "chat"),
    [
        ("tulu_human_pairs.jsonl.gz", 497, False),
        ("qa_feedback.jsonl.gz", 1330, False),
        ("sharegpt_dpo_en.json", 269, True),
        ("messages_dpo_demo.jsonl", 10, True),
    ],
)
def test_every_row_is_a_pair(name, count, chat):
    rows = list(read_rows(str(REAL_DATA / name)))
    pairs = [read_pair(row.value) for row in rows]
    assert len(pairs) == count
    assert all(isinstance(pair, PreferencePair) and pair.chat == chat for pair in pairs)


def test_what_was_said_is_what_the_row_holds():
    """The last turn of the conversation, and both answers, word for word."""
    for row in read_rows(str(REAL_DATA / "sharegpt_dpo_en.json")):
        pair = read_pair(row.value)
        assert [m["content"] for m in pair.prompt] == [m["value"] for m in row.value["conversations"]]
        assert [pair.chosen[0]["content"], pair.rejected[0]["content"]] == [
            row.value[side]["value"] for side in ("chosen", "rejected")
        ]
    for row in read_rows(str(REAL_DATA / "messages_dpo_demo.jsonl")):
        pair = read_pair(row.value)
        for side in ("chosen", "rejected"):
            texts = [part["value"] for m in row.value[f"{side}_messages"] for part in m["content"]]
            assert [m["content"] for m in [*pair.prompt, *getattr(pair, side)]] == texts
