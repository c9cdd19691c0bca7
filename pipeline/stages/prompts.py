"""The held-out prompts that a run answers, before, during and after training, and the answers during training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import pyarrow.parquet as pq

from dpo.lm.model_config import position_limit, read_config
from pipeline.place import Place
from pipeline.stages.preflight import Inputs
from pipeline.store import run_files
from pipeline.store.artifacts import Artifact
from pipeline.store.logs import read_steps
from pipeline.worker.job import Questions

During: TypeAlias = dict[str, dict[str, list[int]]]  # row id -> step -> token ids; as text, as JSON has its keys


def questions_of(place: Place, inputs: Inputs, tokens: Artifact, model: Path) -> Questions | None:
    """The prompts that the workers answer at every evaluation; None where there are none, or no evaluations.

    Nor are there any where the model may run out of positions: that would end a training for a look at it.
    """
    settings, parts = place.config.evaluate, tokens.paths("eval/")
    if settings.every_steps is None or not settings.generate_prompts or not parts:
        return None
    row_ids, pairs = held_out_prompts(parts, settings.generate_prompts)
    prompts, new = [pair["prompt"] for pair in pairs], settings.max_new_tokens
    longest, limit = max(map(len, prompts)), position_limit(read_config(model), learned=True)
    if limit is not None and longest + new > limit:
        place.terminal.note(
            f"{'train':<9} no answers during training: with evaluate.max_new_tokens = {new:,} the longest held-out "
            f"prompt may grow to {longest + new:,} tokens, and the model has {limit:,} positions"
        )
        return None
    return Questions(row_ids, prompts, new, inputs.tokenizer.eos_token_id)


def held_out_prompts(parts: list[Path], count: int) -> tuple[list[int], list[dict[str, list[int]]]]:
    """The row ids and the token ids of the first pairs with different prompts."""
    found: dict[tuple[int, ...], tuple[int, dict[str, list[int]]]] = {}
    for path in parts:
        table = pq.read_table(path, columns=["row_id", "prompt_ids", "chosen_ids", "rejected_ids"])
        for row in table.to_pylist():
            identity = row.pop("row_id")
            pair = {name.removesuffix("_ids"): ids for name, ids in row.items()}
            found.setdefault(tuple(pair["prompt"]), (identity, pair))
            if len(found) == count:
                break
        if len(found) == count:
            break
    return [identity for identity, _ in found.values()], [pair for _, pair in found.values()]


def answered_during(place: Place) -> During:
    """The answers that the workers gave during training; none where none are asked for.

    Those of another evaluate.max_new_tokens are left out: they end elsewhere. Where evaluate.generate_prompts has
    changed, a prompt has answers of some steps only.
    """
    settings = place.config.evaluate
    if not settings.generate_prompts:
        return {}
    found: During = {}
    for row in read_steps(place.run_dir / run_files.SAMPLES)[0]:
        if row.get("max_new_tokens") != settings.max_new_tokens:
            continue
        for row_id, ids in _answers(row):
            found.setdefault(str(row_id), {})[str(row["step"])] = ids
    return found


def _answers(row: dict[str, Any]) -> list[tuple[int, list[int]]]:
    """The row ids and the answers of a line; none where it is damaged."""
    row_ids, answers = row.get("row_ids"), row.get("answers")
    if not isinstance(row_ids, list) or not isinstance(answers, list) or len(row_ids) != len(answers):
        return []
    return list(zip(row_ids, answers, strict=True))
