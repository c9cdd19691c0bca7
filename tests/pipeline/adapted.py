"""Folders of bases and adapters for the line in one process, and what plain peft says of a run's first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.models.identity import identity_of
from pipeline.models.start import InitialPolicy
from pipeline.stages.preflight import preflight
from pipeline.stages.reference import compared_as, reference_of
from tests.dpo.lm.adapters import lora, network, saved
from tests.pipeline.lab import made, place_of

BETA = 0.1
TOML = """
[run]
name = "base"
[data]
train = "train.jsonl"
eval = "eval.jsonl"
max_length = 64
[tokenizer]
path = "bytes"
[policy]
kind = "huggingface"
path = "base"
[train]
batch_pairs = 8
learning_rate = 1e-2
checkpoint_steps = 2
[report]
tensorboard = false
"""
NEW = ("policy.adapter.r=4", "policy.adapter.alpha=8", 'policy.adapter.target_modules=["q_proj","v_proj"]')


def prepared(folder: Path, **changes: Any) -> Path:
    """Pairs, a configuration, a base, and what can be made of it: adapters, a merged one, the base in bfloat16."""
    made(folder)
    (folder / "tiny.toml").write_text(TOML, encoding="utf-8")
    base = whole(**changes)
    saved(base, folder / "base")
    saved(lora(base), folder / "trained")
    saved(lora(base, seed=5), folder / "other")
    saved(with_head(base), folder / "with-head")
    saved(lora(base).merge_and_unload(), folder / "merged")
    saved(whole(torch.bfloat16, **changes), folder / "narrow")
    return folder


def whole(dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    return network(dtype=dtype, **{"vocab_size": 300, **changes})


def with_head(base: Any) -> Any:
    """A trained adapter with a head that is trained whole."""
    return lora(base, seed=3, scale=0.1, modules_to_save=["lm_head"])


def first_rows(run_dir: Path) -> list[dict[str, Any]]:
    """The pairs of a run's first step."""
    window = min((run_dir / "epochs" / "0").glob("window-*.parquet"))
    return pq.ParquetFile(window).read_row_group(0).to_pylist()


@torch.no_grad()
def sums(model: Any, rows: list[dict[str, Any]]) -> Tensor:
    """[2, pairs]: the summed log-probs of chosen and rejected sides, each computed alone by a model of transformers."""
    found = []
    for side in ("chosen", "rejected"):
        for row in rows:
            prompt, completion = row["prompt_ids"], row[f"{side}_ids"]
            ids = torch.tensor([[*prompt, *completion]])
            logps = model(input_ids=ids, use_cache=False).logits.double().log_softmax(-1)[0, len(prompt) - 1 : -1]
            taken = logps.gather(-1, torch.tensor(completion)[:, None])[:, 0]
            found.append(taken[torch.tensor(row[f"{side}_mask"])].sum())
    return torch.stack(found).view(2, -1)


def first_loss(policy: Any, reference: Any, rows: list[dict[str, Any]]) -> float:
    ratios = sums(policy, rows) - sums(reference, rows)
    return float(-torch.nn.functional.logsigmoid(BETA * (ratios[0] - ratios[1])).mean())


def told(folder: Path, *overrides: str) -> tuple[str, str, str]:
    """Identities of start and reference under a configuration, and what the guard compares."""
    place = place_of(folder, *overrides)
    place.workspace.mkdir(exist_ok=True)
    inputs = preflight(place)
    with InitialPolicy(place, inputs.policy, len(inputs.tokenizer), inputs.adapter) as policy:
        start = policy.weights()
    reference = reference_of(place, inputs, start)
    names = (identity_of(model, place.config.train.dtype)[0] for model in (start, reference))
    return *names, compared_as(place, start, reference)  # type: ignore[return-value]
