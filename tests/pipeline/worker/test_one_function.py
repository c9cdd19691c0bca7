"""The policy is the same function while it is trained and while it is evaluated, whatever acts in training alone."""

import pytest
import torch

from dpo.lm.logprobs import LogprobModel
from dpo.lm.models import load_model
from dpo.lm.sequences import TokenSequence
from pipeline.worker.engine import Engine
from tests.pipeline.worker.small_run import LLAMA, PLAIN, make_job, make_rows, model_folder, scored_logps, tables

pytestmark = pytest.mark.group

SIZES = {name: LLAMA[name] for name in LLAMA if name != "model_type"}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": False}
RESTLESS = {
    # Its router draws at random in training.
    "phimoe": {**SIZES, **EXPERTS, "router_jitter_noise": 0.1},
    # Noise on the router's input, in training alone.
    "mixtral": {**SIZES, **EXPERTS, "router_jitter_noise": 0.5},
    # Dropout in a part of the config.
    "dbrx": {
        "vocab_size": 64, "d_model": 32, "n_heads": 4, "n_layers": 2,
        "attn_config": {"kv_n_heads": 2, "attn_pdrop": 0.5, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2, "moe_jitter_eps": 0.5},
    },
}  # fmt: skip


def training_and_alone(job, rows):
    """The log-probs of rows as training computes them, and of each sequence alone; the bytes kept for backward."""
    engine = Engine(job, torch.device("cpu"))
    batch = engine.collate([sequence for row in rows for sequence in sides(row)], len(rows))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        found = engine.logps(batch, agreement=False).logps
    engine.backward(found.sum(), last=True)
    alone = LogprobModel(load_model(job.model, torch.float32).eval(), PLAIN)
    with torch.no_grad():
        expected = torch.cat([scored_logps(alone, row, side) for row in rows for side in ("chosen", "rejected")])
    engine.close()
    return found.detach(), expected, sum(kept)


def sides(row):
    return [
        TokenSequence(row["prompt_ids"], row[f"{side}_ids"], row[f"{side}_mask"]) for side in ("chosen", "rejected")
    ]


@pytest.mark.parametrize("kind", RESTLESS)
def test_nothing_acts_in_training_alone(groups, tmp_path, kind):
    model = model_folder(tmp_path / kind, {"model_type": kind, **RESTLESS[kind]})
    job = make_job(tmp_path / "job", model, [tables(make_rows(4, 0), [4])], 2)
    ((found, expected, _),) = groups.call(1, training_and_alone, job, make_rows(4, 0))
    assert torch.allclose(found, expected, atol=1e-5)


def test_activations_are_computed_again(groups, tmp_path):
    model = model_folder(tmp_path / "llama", {**LLAMA, "num_hidden_layers": 6})
    kept = []
    for again in (False, True):
        job = make_job(tmp_path / f"{again}", model, [tables(make_rows(4, 0), [4])], 2, activation_checkpointing=again)
        ((found, expected, size),) = groups.call(1, training_and_alone, job, make_rows(4, 0))
        assert torch.allclose(found, expected, atol=1e-5)
        kept.append(size)
    assert kept[1] < kept[0] / 3
