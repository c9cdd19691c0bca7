"""Whether a training job fits a card, and the keys to change where it does not."""

import re

import numpy as np
import pytest

from dpo.lm.model_config import Shape
from pipeline.config import Config
from pipeline.models.cards import CARDS, card_named
from pipeline.models.room import Training, advised_zero, shortage
from pipeline.models.sizing import Zero
from tests.pipeline.files import config_file
from tests.pipeline.models.shapes import LLAMA_1B, LLAMA_8B, LLAMA_70B, QWEN_05B

PAIRS = tuple(np.full(1000, n) for n in (500, 250, 250))


def training(config, workers, stage, budget=16384, **changes):
    made = Training(Shape.of(config), Zero(stage, workers), PAIRS, budget, False, True, True)
    return made._replace(**changes)


@pytest.mark.parametrize(
    ("name", "memory", "found"),
    [
        ("NVIDIA A100-SXM4-40GB", 42.4e9, "A100-40GB"),
        ("NVIDIA A100 80GB PCIe", 85.1e9, "A100-80GB"),
        ("NVIDIA H100 80GB HBM3", 85.0e9, "H100"),
        ("NVIDIA H200", 150.1e9, "H200"),
        ("NVIDIA B200", 191.5e9, "B200"),
        ("NVIDIA L4", 23.7e9, "L4"),
        ("NVIDIA L40S", 47.7e9, "L40S"),
        ("NVIDIA A10G", 23.8e9, "A10G"),
        ("Tesla V100-SXM2-16GB", 16.9e9, "V100-16GB"),
        ("Tesla V100-SXM2-32GB", 34.1e9, "V100-32GB"),
        ("Tesla T4", 15.6e9, "T4"),
        ("NVIDIA GeForce RTX 4090", 25.4e9, "RTX-4090"),
    ],
)
def test_a_card_is_known_by_its_drivers_name(name, memory, found):
    assert card_named(name, memory) == CARDS[found]._replace(memory=memory)


def test_a_card_that_is_not_in_the_table_is_none_of_it():
    assert card_named("NVIDIA L400", 24e9) is None
    assert card_named("NVIDIA GeForce RTX 3090", 24e9) is None


def test_a_job_has_room_or_not():
    """Half a billion parameters: states 9.9 GB, and 16,384 tokens of 62 KB in each of 24 layers."""
    job = training(QWEN_05B, 1, 1)
    assert job.fits(80e9) and not job.fits(40e9)


def test_the_longest_pair_is_counted_although_it_is_above_the_budget():
    longest = training(LLAMA_1B, 8, 1, lengths=tuple(np.array([n]) for n in (9000, 9000, 9000)))
    assert longest.memory.activations > 1.6 * training(LLAMA_1B, 8, 1).memory.activations


@pytest.mark.parametrize(
    ("job", "memory", "said"),
    [
        (training(QWEN_05B, 1, 1), 40e9, "Set train.activation_checkpointing = true, or lower train.micro_batch_tok"),
        (training(QWEN_05B, 1, 1, may_checkpoint=False), 40e9, "Lower train.micro_batch_tokens to "),
        (training(LLAMA_8B, 8, 1, 2048), 80e9, "Raise deepspeed.stage to "),
        (training(LLAMA_70B, 8, 3, 2048), 80e9, "Raise deepspeed.stage to 3 and cluster.workers, or set "),
        (training(QWEN_05B, 64, 2, 1024), 4e9, "Lower zero_optimization.reduce_bucket_size in the file of "),
    ],
)
def test_what_is_advised_fits(job, memory, said):
    assert not job.fits(memory)
    advice = job.advice(memory)
    assert advice.startswith(said), advice
    for tokens in re.findall(r"micro_batch_tokens to (\d+)", advice):
        assert job.fits(memory, budget=int(tokens))
    for stage in re.findall(r"deepspeed.stage to (\d)\.", advice):
        assert job.fits(memory, zero=job.zero._replace(stage=int(stage)))


@pytest.mark.parametrize(
    ("config", "checkpointing", "most"),
    [(QWEN_05B, False, 37_000), (QWEN_05B, True, 526_000), (LLAMA_1B, False, 21_000), (LLAMA_1B, True, 219_000)],
)
def test_the_largest_micro_batch_on_80_gb(config, checkpointing, most):
    """What follows from the bytes that hooks and tensors gave: one card, stage 1."""
    assert training(config, 1, 1, round(0.97 * most), checkpointing=checkpointing).fits(80e9)
    assert not training(config, 1, 1, round(1.03 * most), checkpointing=checkpointing).fits(80e9)


def test_an_8b_does_not_fit_one_card():
    assert training(LLAMA_8B, 1, 1).memory.states == pytest.approx(161e9, rel=0.01)


def test_a_run_is_warned_of_before_a_pair_is_read(tmp_path):
    path = config_file(
        tmp_path,
        policy={"kind": "huggingface", "path": "somewhere"},
        train={"dtype": "bfloat16", "micro_batch_tokens": 16384},
        deepspeed={"stage": 1},
        cluster={"gpus_per_worker": 1},
    )
    config = Config.load(path)
    assert shortage(config, QWEN_05B, CARDS["H100"]) is None
    assert shortage(config, {"model_type": "of other sizes"}, CARDS["T4"]) is None
    said = shortage(config, QWEN_05B, CARDS["A100-40GB"])
    assert re.fullmatch(
        r"memory    about 3\d\.\d GiB: states 9\.2, .+\. 9\d% of A100-40GB \(40 GB\)\. "
        r"Set train\.activation_checkpointing = true, or lower train\.micro_batch_tokens to 8192\.",
        said,
    )


@pytest.mark.parametrize(
    ("config", "stages"),
    [(QWEN_05B, (1, 1, 1)), (LLAMA_1B, (1, 1, 1)), (LLAMA_8B, (1, 2, 2)), (LLAMA_70B, (1, 3, 3))],
    ids=["0.5B", "1B", "8B", "70B"],
)
def test_the_stage_for_cards_of_80_gb(config, stages):
    """On 1, 8 and 64 of them: one card has nobody to share with, even where the model does not fit."""
    jobs = [training(config, workers, 2, 8192, checkpointing=True) for workers in (1, 8, 64)]
    assert tuple(advised_zero(job, 80e9).stage for job in jobs) == stages


def test_at_stage_2_small_buckets_are_sent_beside_the_backward_pass():
    zero = advised_zero(training(LLAMA_8B, 8, 3, 8192, checkpointing=True), 80e9)
    assert zero == Zero(2, 8, overlap=True, bucket=10**8)


def test_weights_in_the_memory_of_the_cpu_need_stage_3():
    offloaded = Zero(3, 1, optimizer_on_cpu=True, weights_on_cpu=True)
    assert advised_zero(training(QWEN_05B, 1, 3, zero=offloaded), 80e9).stage == 3
