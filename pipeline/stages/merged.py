"""An adapter and its base -> a whole model in a folder, and what a card says of adapter, merging and reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dpo.lm.adapter_files import Worn, read_adapter_config, why_not_served
from dpo.lm.model_config import read_config
from dpo.lm.sequences import TokenSequence
from pipeline.errors import InputError
from pipeline.models.start import Weights, copy_config
from pipeline.place import Place
from pipeline.process import Process
from pipeline.stages.score import Scores
from pipeline.store import run_files

MOST_LOST = 0.1  # share of the adapter that a merged model may lack
PAIRS = 8  # whose log-probs are compared before and after


def merge_into_base(place: Place, policy: Weights, folder: Path) -> dict[str, str]:
    """Write a policy's base with its adapter merged in; returns the facts for the card.

    Raises:
        InputError: too much of the adapter would be lost in export.dtype.
    """
    dtype = place.config.export.dtype
    if dtype == "auto":
        dtype = "float32" if policy.quantize != "none" else Process(_type_of, policy.folder).result()
    pairs = _first_pairs(place.run_dir / run_files.EPOCHS)
    arguments = policy.folder, policy.worn, dtype, folder, pairs, MOST_LOST, place.config.train.dtype
    found = Process(_merge, *arguments).result()
    if found["lost"] > MOST_LOST:
        raise InputError(
            f"Merging in {dtype} would lose {found['lost']:.0%} of the adapter, and move a token by {found['gap']:.2g} "
            f"nats: its small changes are below what {dtype} resolves (the limit is {MOST_LOST:.0%}). Set "
            'export.dtype = "float32", or keep the adapter (export.merge = false).'
        )
    copy_config(policy.folder, folder, dtype)
    if found["untied"]:
        path = folder / "config.json"
        config = {**read_config(folder), "tie_word_embeddings": False}
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return facts_of_adapter(policy) | {
        "Merged": f"into the base in float32, written in {dtype}"
        + (", head and embedding untied" if found["untied"] else ""),
        "Lost by merging": f"{found['lost']:.2g} of the adapter's change of the weights",
        "Log-probs moved by merging": f"{found['gap']:.2g} nats a token, on the first {len(pairs) // 2} pairs",
    }


def _type_of(base: Path) -> str:
    from dpo.lm.merge import type_of  # with torch and peft, which the driver does without

    return type_of(base)


def _merge(
    base: Path, worn: Worn, dtype: str, out: Path, pairs: list[TokenSequence], most: float, trained: str
) -> dict[str, Any]:
    from dpo.lm.merge import merge  # with torch and peft, as above

    return merge(base, worn, dtype, out, pairs, most, trained)._asdict()


def _first_pairs(epochs: Path) -> list[TokenSequence]:
    """Both sides of the first pairs that were trained on."""
    window = min((epochs / "0").glob(run_files.WINDOWS))
    names = ("prompt_ids", *(f"{side}_{part}" for side in ("chosen", "rejected") for part in ("ids", "mask")))
    rows = pq.ParquetFile(window).read_row_group(0, columns=list(names)).slice(0, PAIRS).to_pylist()
    return [
        TokenSequence(row["prompt_ids"], row[f"{side}_ids"], row[f"{side}_mask"])
        for row in rows
        for side in ("chosen", "rejected")
    ]


def facts_of_adapter(policy: Weights) -> dict[str, str]:
    """The rows of a card that say what the adapter is, and whether vLLM serves it beside its base."""
    assert policy.adapter is not None
    config = read_adapter_config(policy.adapter.folder)
    kind = "DoRA" if config.get("use_dora") else "LoRA"
    against = why_not_served(config)
    served = f"yes, with max_lora_rank of at least {config['r']}" if against is None else f"no: {against}"
    return {
        "Adapter": f"{kind}, r {config['r']}, alpha {config['lora_alpha']:g}, `{policy.adapter.digest[:16]}`",
        "Base": f"{config.get('base_model_name_or_path') or 'a random model'}, `{policy.digest[:16]}`",
        "Quantization of the base in training": policy.quantize,
        "Served by vLLM as an adapter": served,
    }


def named_reference(place: Place, scores: Scores | None) -> dict[str, str]:
    """The row of a card that says what the reference was."""
    named = place.config.reference.model
    if scores is None:
        said = "none"
    elif named == "start":
        said = f"the policy's own start, `{scores.identity}`"
    elif named == "base":
        said = f"the base, `{scores.identity}`"
    else:
        said = f"{Path(named).name if Path(named).is_absolute() else named}, `{scores.identity}`"
    return {"Reference (identity of its log-probs)": said}
