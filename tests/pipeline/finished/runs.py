"""Folders of finished runs with tiny models, made without a run, and the command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from dpo.lm.weight_files import weights_digest
from pipeline.config import Config
from pipeline.data.tokenizer import save_tokenizer
from pipeline.place import Place
from pipeline.store import run_files
from pipeline.store.artifacts import begin, commit
from tests.dpo.lm.adapters import network, saved
from tests.pipeline.files import config_file, jsonl
from tests.places import ROOT

CHAT = {"prompt": [{"role": "user", "content": "Where is the pen?"}]} | {
    side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")
}
STRINGS = {"prompt": "Where is the pen?", "chosen": " chosen", "rejected": " rejected"}
CHATML = ("bytes", None, "chatml")
VOCABULARY = 300


def moved(base: Any, seed: int = 5) -> Any:
    """A copy of a network with other weights."""
    draw = torch.Generator().manual_seed(seed)
    other = type(base)(base.config).eval()
    other.load_state_dict(base.state_dict())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.05)
    return other


def finished_run(folder: Path, row: dict[str, Any] = CHAT, kind: str = "llama", **sections: Any) -> str:
    """Write a base, a TOML file of a run that begins with it, and what the run leaves; returns the TOML file."""
    base = network(kind, vocab_size=VOCABULARY)
    saved(base, folder / "base")
    jsonl(folder / "pairs.jsonl", [row])
    template = {"chat_template": "chatml"} if row is CHAT else {}
    path = config_file(
        folder,
        run={"name": "one", "dir": "runs", "workspace": "workspace"},
        policy={"kind": "huggingface", "path": "base"},
        tokenizer={"path": "bytes", **template},
        **sections,
    )
    place = Place.of(Config.load(path))
    place.run_dir.mkdir(parents=True)
    place.workspace.mkdir()
    (place.run_dir / run_files.CONFIG).write_text(place.config.model_dump_json(), encoding="utf-8")
    committed(place.run_dir / run_files.WEIGHTS, {"start": weights_digest(folder / "base")})
    own = begin(place.run_dir / run_files.EXPORT)
    saved(moved(base), own)
    save_tokenizer(str(own), ("bytes", None, template.get("chat_template")))
    (own / "README.md").write_text("# one\n", encoding="utf-8")
    commit(own, place.run_dir / run_files.EXPORT, {"stage": "export"}, {})
    return path


def committed(folder: Path, made_of: dict[str, Any]) -> None:
    """An artifact without files."""
    commit(begin(folder), folder, made_of, {})


def program(*arguments: str, lines: str = "", **environment: str) -> tuple[int, str, str]:
    """The exit status and both outputs of the command line, which reads some lines."""
    there = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]), **environment}
    command = [sys.executable, "-m", "pipeline", *arguments]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False, env=there)
    return done.returncode, done.stdout, done.stderr
