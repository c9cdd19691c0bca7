"""Pairs are shown as people wrote them, not as the template writes them."""

from pipeline.config import Config
from pipeline.data.sources import DataFile
from pipeline.stages.written import as_written, plain
from pipeline.store.tokens import row_id
from tests.pipeline.files import config_file, jsonl

CHAT = {
    "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a prime."}],
    "chosen": [{"role": "assistant", "content": "7"}],
    "rejected": [{"role": "assistant", "content": "8"}],
}
RANKED = {"prompt": "Q", "responses": ["a", "b", "c"], "scores": [1, 2, 3]}


def test_rows_are_found_by_their_ids(tmp_path):
    rows = [{"no": 1}, {"prompt": "first\nline", "chosen": " yes", "rejected": " no"}, CHAT, RANKED]
    files = [DataFile(str(jsonl(tmp_path / f"{name}.jsonl", rows)), None, 1.0, {}) for name in "ab"]
    data = Config.load(config_file(tmp_path, data={"train": "a.jsonl", "pairing": "all"})).data
    wanted = [row_id(1, 1), row_id(0, 2), row_id(0, 3, 1), row_id(0, 0)]
    assert as_written(wanted, files, data) == {
        row_id(1, 1): {"prompt": "first\nline", "chosen": " yes", "rejected": " no"},
        row_id(0, 2): {"prompt": "Name a prime.", "chosen": "7", "rejected": "8"},
        row_id(0, 3, 1): {"prompt": "Q", "chosen": "c", "rejected": "a"},
    }


def test_several_turns_have_their_roles():
    turns = [*CHAT["prompt"], {"role": "assistant", "content": "7"}, {"role": "user", "content": "Another."}]
    assert plain(turns) == "user: Name a prime.\n\nassistant: 7\n\nuser: Another."
    assert plain(CHAT["prompt"][:1]) == "Be brief."
