"""All rows of a file have one form: where some are messages, strings are read as messages, too."""

import pyarrow.parquet as pq
import pytest

from dpo.text.tokenizers import load_tokenizer
from pipeline.cluster.items import here
from pipeline.config import Config
from pipeline.data.sources import data_files
from pipeline.data.tokenizer import open_tokenizer
from pipeline.place import Place
from pipeline.stages import prepare
from pipeline.stages.preflight import Inputs
from tests.pipeline.files import config_file, jsonl

ANSWERS = {"chosen": " Here.", "rejected": " There."}
PLAIN = [{"prompt": f"Where is {i}?", **ANSWERS} for i in range(6)]
MIXED = {
    "an empty system text": [{"question": f"Where is {i}?", **ANSWERS, "system": "Brief." * (i % 2)} for i in range(6)],
    "a system text that is missing": [{**row, **({"system": "Be brief."} if i else {})} for i, row in enumerate(PLAIN)],
    "messages in one row": [*PLAIN, {**ANSWERS, "prompt": [{"role": "user", "content": "Who?"}]}],
}


def prompts(folder, files, **data):
    """The prompts of each file, and how many of its pairs are noted as read as messages."""
    sections = {"data": {"train": [str(file) for file in files], **data}, "run": {"dir": str(folder)}}
    config = Config.load(config_file(folder, **sections, tokenizer={"path": "bytes", "chat_template": "chatml"}))
    place = Place.of(config)
    place.run_dir.mkdir()
    inputs = Inputs(data_files(config.data, place.workspace), open_tokenizer(config), None)
    tokens = prepare.prepare(place, inputs, here).result
    parts = [pq.read_table(part)["prompt_ids"].to_pylist() for part in tokens.paths("train/")]
    decode = load_tokenizer("bytes").decode
    return [[decode(ids) for ids in part] for part in parts], tokens.counts.get("noticed", {})


@pytest.mark.parametrize("name", MIXED)
def test_strings_beside_messages_are_messages(tmp_path, name):
    files = [jsonl(tmp_path / "mixed.jsonl", MIXED[name]), jsonl(tmp_path / "plain.jsonl", PLAIN)]
    (mixed, plain), noticed = prompts(tmp_path, files)
    assert len(mixed) == len(MIXED[name]) and all(text.startswith("<|im_start|>") for text in mixed)
    assert plain == [row["prompt"] for row in PLAIN]  # another file
    strings = sum(not row.get("system") and isinstance(row.get("prompt", ""), str) for row in MIXED[name])
    assert noticed["strings as messages"] == strings


def test_strings_that_are_meant_so_stay(tmp_path):
    files = [jsonl(tmp_path / "mixed.jsonl", MIXED["messages in one row"])]
    ((*strings, chat),), _ = prompts(tmp_path, files, strings="as-is")
    assert strings == [row["prompt"] for row in PLAIN] and chat.startswith("<|im_start|>")
