"""Whether a training job fits a card, and the keys to change where it does not."""

import json
import re

import numpy as np
import pytest

from dpo.lm.model_config import Shape
from pipeline.claim import claim
from pipeline.cluster.machine import settled, tell_gpus
from pipeline.config import Config
from pipeline.config.deepspeed import deepspeed_settings
from pipeline.errors import InputError
from pipeline.models.cards import CARDS, card_named, memory_of
from pipeline.models.room import Training, advised_zero, shortage
from pipeline.models.sizing import Zero
from pipeline.place import Place
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


@pytest.mark.parametrize(
    ("kind", "gigabytes"),
    [("H100", 80), ("A100", 40), ("A100-40G", 40), ("A100-80G", 80), ("L4", 24), ("L40S", 48), ("V100", 16)],
)
def test_the_memory_of_what_ray_calls_an_accelerator_type(kind, gigabytes):
    assert memory_of(kind) == gigabytes * 1e9
    assert memory_of("P100") is memory_of("") is None


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
        (training(QWEN_05B, 64, 2, 1024), 4e9, "Lower deepspeed.reduce_bucket_size."),
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


SMALL_BUCKETS = {"overlap_comm": True, "reduce_bucket_size": 100_000_000}
LAYER_OF_70B = 2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672
# Of 64 cards each has 22 GB free, so a layer is gathered ahead. On 8 the states alone are 158 GB.
GATHERED = {"stage3_prefetch_bucket_size": LAYER_OF_70B, "stage3_max_live_parameters": 2 * LAYER_OF_70B}
NO_ROOM = {**GATHERED, "stage3_prefetch_bucket_size": 0}
CHOSEN = {
    "0.5B": (QWEN_05B, {1: (1, {}), 8: (1, {}), 64: (1, {})}),
    "1B": (LLAMA_1B, {1: (1, {}), 8: (1, {}), 64: (1, {})}),
    "8B": (LLAMA_8B, {1: (1, {}), 8: (2, SMALL_BUCKETS), 64: (2, SMALL_BUCKETS)}),
    "70B": (LLAMA_70B, {1: (1, {}), 8: (3, NO_ROOM), 64: (3, GATHERED)}),
}


def on_cards(folder, workers, model=LLAMA_8B, policy=None, **deepspeed):
    """A configuration whose policy is a folder with that config.json alone, as loaded."""
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "config.json").write_text(json.dumps({"model_type": "llama", **model}), encoding="utf-8")
    path = config_file(
        folder,
        run={"dir": str(folder / "runs")},
        data={"train": "pairs.jsonl", "max_length": 1000},
        policy=policy or {"kind": "huggingface", "path": str(folder / "model")},
        train={"batch_pairs": 64, "micro_batch_tokens": 8192, "activation_checkpointing": policy is None},
        cluster={"workers": workers, "gpus_per_worker": 1},
        deepspeed=deepspeed,
    )
    return Config.load(path)


def sharding(config):
    """The keys of a [deepspeed] section that are set."""
    return {name: value for name, value in config.deepspeed.model_dump().items() if value not in (None, "none")}


@pytest.mark.parametrize(
    ("model", "workers", "stage", "keys"),
    [
        pytest.param(model, workers, *chosen, id=f"{name} on {workers}")
        for name, (model, cases) in CHOSEN.items()
        for workers, chosen in cases.items()
    ],
)
def test_the_section_that_is_chosen_for_cards_of_80_gb(tmp_path, model, workers, stage, keys):
    config = settled(on_cards(tmp_path, workers, model), memory=80e9)
    assert config.train.dtype == "bfloat16"
    assert sharding(config) == {"stage": stage, **keys}
    training = Training.unread(config, Shape.of(model))
    assert training.zero.stage == stage
    assert training.fits(80e9) == ((model, workers) not in ((LLAMA_8B, 1), (LLAMA_70B, 1), (LLAMA_70B, 8)))


def test_less_free_memory_gathers_less_ahead(tmp_path):
    config = on_cards(tmp_path, 64, LLAMA_70B)
    ahead = [sharding(settled(config, memory=gb * 1e9))["stage3_prefetch_bucket_size"] for gb in (53, 56, 57, 80)]
    assert ahead == sorted(ahead) and 0 == ahead[0] < ahead[1] < ahead[-1] == LAYER_OF_70B


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ({"stage": 1}, {"stage": 1}),
        ({"stage": 2}, {"stage": 2}),
        ({"stage": 3}, {"stage": 3}),
        ({"stage": "auto", "reduce_bucket_size": 7}, {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 7}),
        ({"overlap_comm": False}, {"stage": 2, "overlap_comm": False, "reduce_bucket_size": 100_000_000}),
    ],
)
def test_what_was_given_is_not_chosen(tmp_path, given, chosen):
    assert sharding(settled(on_cards(tmp_path, 8, **given), memory=80e9)) == chosen


@pytest.mark.parametrize(
    ("zero", "chosen"),
    [
        ({"reduce_bucket_size": 5e7}, {"stage": 2, "overlap_comm": True}),
        ({"stage": 3}, {"stage": 3}),
        ({"stage": "auto", "reduce_bucket_size": "auto"}, {"stage": 2, **SMALL_BUCKETS}),
    ],
)
def test_what_the_file_of_deepspeed_gives_is_not_chosen(tmp_path, zero, chosen):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": zero}), encoding="utf-8")
    config = settled(on_cards(tmp_path, 8, config=str(path)), memory=80e9)
    assert sharding(config) == {**chosen, "config": str(path)}
    deepspeed_settings(config.train, config.deepspeed)  # they do not contradict each other


@pytest.mark.parametrize(
    "policy",
    [
        {"kind": "huggingface", "path": "nobody/has-this-one"},
        {"kind": "huggingface", "path": "/there/is/no/such/folder"},
        {"kind": "huggingface", "config": {"model_type": "of other sizes"}},
    ],
)
def test_a_model_of_unknown_size_has_the_usual_stage(tmp_path, policy):
    assert sharding(settled(on_cards(tmp_path, 8, policy=policy), memory=80e9)) == {"stage": 2}
    assert sharding(settled(on_cards(tmp_path, 1, policy=policy), memory=80e9)) == {"stage": 1}


def test_a_model_that_is_made_has_a_size(tmp_path):
    small = on_cards(tmp_path, 8, policy={"kind": "x-transformers"})
    assert sharding(settled(small, memory=80e9)) == {"stage": 1}
    assert sharding(settled(small)) == {"stage": 2}  # the memory is unknown
    described = on_cards(tmp_path, 8, policy={"kind": "huggingface", "config": {"model_type": "llama", **LLAMA_8B}})
    assert sharding(settled(described, memory=180e9)) == {"stage": 1}


def test_of_several_numbers_of_workers_the_least_has_to_fit(tmp_path):
    assert sharding(settled(on_cards(tmp_path, [2, 64]), memory=80e9))["stage"] == 3
    assert sharding(settled(on_cards(tmp_path, [8, 64]), memory=80e9))["stage"] == 2


def test_a_run_keeps_the_sharding_that_it_began_with(tmp_path):
    """Also on other cards, and on none that are known."""
    loaded = on_cards(tmp_path, 8)
    began = settled(loaded, memory=80e9)
    place = Place.of(began)
    with claim(began, place.run_dir, place.workspace, print):
        (place.run_dir / "epochs").mkdir()  # else a run that made nothing gives its name back
    for memory in (80e9, 180e9, 40e9, None):
        again = settled(loaded, memory=memory)
        assert again.deepspeed == began.deepspeed
        with claim(again, place.run_dir, place.workspace, print):
            pass
    other = settled(Config.load(str(tmp_path / "run.toml"), ["run.name=other"]), memory=180e9)
    assert sharding(other) == {"stage": 1}
    softer = settled(on_cards(tmp_path, 8, stage=1))
    refused = pytest.raises(InputError, match=r"deepspeed.stage \(was 2, is 1\)")
    with refused, claim(softer, place.run_dir, place.workspace, print):
        pass


@pytest.mark.parametrize(
    ("override", "scoring"),
    [
        ("reference.actors=2", "scoring: 2 actor(s), each with 1 GPU(s) and 1 CPU(s)"),
        ("reference.by=trainers", "scoring: by the same workers"),
    ],
)
def test_the_first_line_of_a_run_shows_what_was_chosen(tmp_path, capsys, override, scoring):
    on_cards(tmp_path, 8)
    place = Place.of(settled(Config.load(str(tmp_path / "run.toml"), [override]), memory=80e9))
    tell_gpus(place)
    training = "training: 8 worker(s), each with 1 GPU(s) and 1 CPU(s), in bfloat16 at ZeRO stage 2"
    assert capsys.readouterr().out.split() == f"{training}; {scoring}".split()


def test_at_stage_2_small_buckets_are_sent_beside_the_backward_pass():
    zero = advised_zero(training(LLAMA_8B, 8, 3, 8192, checkpointing=True), 80e9)
    assert zero == Zero(2, 8, overlap=True, bucket=10**8)


def test_weights_in_the_memory_of_the_cpu_need_stage_3():
    offloaded = Zero(3, 1, optimizer_on_cpu=True, weights_on_cpu=True)
    assert advised_zero(training(QWEN_05B, 1, 3, zero=offloaded), 80e9).stage == 3
