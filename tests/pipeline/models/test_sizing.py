"""What sizing counts, against what torch keeps: tensors saved for the backward pass, each storage once."""

import json

import numpy as np
import pytest
import torch

from dpo.lm.batch import collate_shared
from dpo.lm.hf import HuggingFaceModel
from dpo.lm.logprobs import LogprobModel
from dpo.lm.model_config import Shape
from dpo.lm.sequences import TokenSequence
from pipeline.config import DeepSpeed, Train
from pipeline.config.deepspeed import deepspeed_settings
from pipeline.models import sizing
from pipeline.models.sizing import MicroBatch, Zero

LENGTHS = (48, 30, 24)  # of prompt, chosen, rejected


def rope(kind, hidden, inner, heads, key_value_heads):
    return {
        "model_type": kind,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
    }


# The proportions of Qwen2.5-0.5B, Llama-3.2-1B and GPT-2, with fewer channels.
SHAPES = {
    "qwen2": rope("qwen2", 56, 304, 7, 1),
    "llama": rope("llama", 64, 256, 8, 2),
    "gpt2": {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_positions": 256},
}
EACH = [
    pytest.param(name, dtype, checkpointing, id=f"{name}-{dtype}-{'checkpointing' if checkpointing else 'all'}")
    for name in SHAPES
    for dtype in ("bfloat16", "float32")
    for checkpointing in (False, True)
]


def config(name, layers):
    depth = {"n_layer": layers} if name == "gpt2" else {"num_hidden_layers": layers}
    ends = {"bos_token_id": 0, "eos_token_id": 1}
    return {**SHAPES[name], **depth, **ends, "vocab_size": 64, "tie_word_embeddings": True}


def batch_of(count):
    draw = np.random.default_rng(0)
    sequences = []
    for _ in range(count):
        prompt, *sides = (draw.integers(0, 64, n).tolist() for n in LENGTHS)
        sequences += [TokenSequence(prompt, side, [True] * len(side)) for side in sides]
    return collate_shared(sequences, 0)


def saved(name, layers, dtype, checkpointing):
    """Bytes that the forward pass keeps, beside the weights."""
    model = LogprobModel(HuggingFaceModel.random(config(name, layers), 0).to(getattr(torch, dtype)))
    if checkpointing:
        model.model.checkpoint_activations()
        model.train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}  # the tensors too, so that no address is used twice

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(batch_of(3)).logps.sum()
    return sum(storage.nbytes() for storage in kept.values())


def counted(name, layers, dtype, checkpointing):
    batch = MicroBatch.of(3 * sum(LENGTHS), *LENGTHS)
    return sizing.activation_bytes(Shape.of(config(name, layers)), batch, checkpointing, dtype == "float32")


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize(("name", "dtype", "checkpointing"), EACH)
def test_a_layer_keeps_what_is_counted(name, dtype, checkpointing):
    """A layer in the middle: a model of four layers less one of three."""
    four, three = (saved(name, layers, dtype, checkpointing) for layers in (4, 3))
    assert counted(name, 4, dtype, checkpointing) - counted(name, 3, dtype, checkpointing) == pytest.approx(
        four - three, rel=0.05
    )


@pytest.mark.parametrize("name", SHAPES)
def test_a_whole_model_keeps_what_is_counted(name):
    """The last layer keeps less, since it is computed at scored positions only."""
    found = saved(name, 6, "bfloat16", False)
    assert found <= counted(name, 6, "bfloat16", False) <= 1.05 * found


def test_a_micro_batch_counts_every_pair():
    """Two pairs, P 10, C 4, R 2 and P 3, C 1, R 6, twice over."""
    assert MicroBatch.of(52, [10, 3], [4, 1], [2, 6]) == (52, 26, 36, 42, 2 * (2 * 12 + 6 * 9))


def test_states_of_a_job_by_hand():
    """8 B parameters on 8 GPUs in bfloat16."""
    zero = Zero(1, 8)
    assert sizing.states_bytes(8e9, zero) == 8e9 * (2 + 2 + 4 + 12 / 8)
    assert sizing.states_bytes(8e9, zero._replace(stage=2)) == 8e9 * (2 + 16 / 8)
    sharded = zero._replace(stage=3)
    assert sizing.states_bytes(8e9, sharded) == 8e9 * 18 / 8
    assert sizing.states_bytes(8e9, sharded._replace(optimizer_on_cpu=True)) == 8e9 * 2 / 8
    assert sizing.states_bytes(8e9, sharded._replace(optimizer_on_cpu=True, weights_on_cpu=True)) == 0


def test_buffers_of_a_job_by_hand():
    """DeepSpeed's own sizes: buckets of 5e8 numbers, and 1e9 live weights at stage 3."""
    assert sizing.buffers_bytes(8e9, Zero(1, 8)) == 0
    assert sizing.buffers_bytes(8e9, Zero(1, 8, float32=True)) == 5e8 * (4 + 4)
    assert sizing.buffers_bytes(8e9, Zero(2, 8)) == 5e8 * (2 + 4)
    assert sizing.buffers_bytes(1e8, Zero(2, 8)) == 5e8 * 2 + 1e8 * 4  # the bucket is whole, its copy is not
    assert sizing.buffers_bytes(8e9, Zero(2, 8, bucket=10**8, overlap=True)) == 2 * 1e8 * (2 + 4)
    assert sizing.buffers_bytes(8e9, Zero(3, 8)) == 1e9 * 2 + 5e8 * (4 + 4 * 9 / 8)


def test_the_sharding_is_read_from_what_deepspeed_gets(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"reduce_bucket_size": 2e8, "stage3_max_live_parameters": 3e8}}))
    train, deepspeed = Train(dtype="bfloat16"), DeepSpeed(stage=3, config=str(path), offload_param="cpu")
    zero = Zero.of(deepspeed_settings(train, deepspeed), 4)
    assert zero == Zero(3, 4, weights_on_cpu=True, bucket=2 * 10**8, overlap=True, live=3 * 10**8)
    assert Zero.of(deepspeed_settings(Train(), DeepSpeed()), 4) == Zero(2, 4, float32=True)


def test_on_a_cpu_everything_is_in_one_memory_and_only_what_is_filled():
    shape, batch = sizing.from_parameters(1e8), MicroBatch.of(1024, *LENGTHS)
    zero = Zero(3, 1, optimizer_on_cpu=True, weights_on_cpu=True)
    here, there = (sizing.estimate(shape, zero, batch, True, gpu=gpu) for gpu in (False, True))
    assert here.states == 18e8 and there.states == 0
    assert here.buffers == pytest.approx(1e8 * (2 + 4 + 8)) and there.buffers == 2e8 + 20e8 + 8e8


def test_the_shape_of_a_config():
    """Llama 3.2 1B: 1.24 billion parameters with tied embeddings."""
    llama = {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "intermediate_size": 8192,
        "vocab_size": 128256,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    }
    assert Shape.of(llama).parameters == pytest.approx(1.236e9, rel=1e-3)


def test_frozen_weights_of_an_8b_fit_a_small_card_in_4_bits():
    """Embedding and head stay in 16 bits: 2.1 GB of 6."""
    llama = {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "vocab_size": 128256, "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
    }  # fmt: skip
    shape, zero = Shape.of(llama), sizing.Zero(1, 1)
    nf4, plain = (sizing.Frozen(40e6, kind).bytes(shape, zero) for kind in ("nf4", "none"))
    assert nf4 == pytest.approx(shape.body * 0.5625 + 2 * 2 * 128256 * 4096) and nf4 < 6.1e9
    assert plain == 2 * shape.parameters
    assert sizing.Frozen(40e6).bytes(shape, zero._replace(stage=3, workers=4)) == plain / 4
    batch = sizing.MicroBatch.of(4096, 400, 300, 300)
    adapted = sizing.estimate(shape, zero, batch, True, frozen=sizing.Frozen(40e6, "nf4"))
    assert adapted.states == pytest.approx(nf4 + 20 * 40e6)
