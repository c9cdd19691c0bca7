"""What chat answers for runs of the whole line is what their own evaluation wrote, before and after training."""

import io
import json
import sys

import pytest

from pipeline import cli
from tests.pipeline.adapted import NEW, prepared
from tests.pipeline.finished.test_chat import shown
from tests.pipeline.lab import SFT, made

pytestmark = pytest.mark.group

MOST = 8  # tokens of an answer
ASK = ("evaluate.generate_prompts=3", f"evaluate.max_new_tokens={MOST}")
RUNS = {
    "x-transformers after sft": (made, SFT),
    "an adapter after sft": (prepared, (*NEW, *SFT)),
    "an adapter that was given": (prepared, ("policy.adapter.path=FOLDER/trained",)),
    "a merged adapter": (prepared, (*NEW, "export.merge=true")),
}


@pytest.mark.parametrize(("prepare", "words"), RUNS.values(), ids=RUNS)
def test_chat_answers_as_the_runs_evaluation_did(lab, tmp_path, monkeypatch, capsys, prepare, words):
    folder = prepare(tmp_path / "lab")
    words = [word.replace("FOLDER", str(folder)) for word in words]
    assert isinstance(lab.line(folder, *words, *ASK), dict)
    rows = [json.loads(line) for line in (folder / "runs/base/evaluation/answers.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and any(row["before"] != row["after"] for row in rows)
    lines = "".join(f"{row['prompt']}\n" for row in rows).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    capsys.readouterr()
    assert cli.main(["chat", str(folder / "runs/base"), "--show", "both", "--max-tokens", str(MOST)]) == 0
    expected = [f"{name}: {shown(row[name])}\n" for row in rows for name in ("before", "after")]
    assert capsys.readouterr().out == "".join(expected)
