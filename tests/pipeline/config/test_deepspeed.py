import json

import pytest
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from pipeline.config import DeepSpeed, Train
from pipeline.config.deepspeed import deepspeed_settings
from pipeline.errors import ConfigError

# As the documentation of Hugging Face's Trainer has it for ZeRO-3 with offload.
HUGGING_FACE = {
    "fp16": {
        "enabled": "auto",
        "loss_scale": 0,
        "loss_scale_window": 1000,
        "initial_scale_power": 16,
        "hysteresis": 2,
        "min_loss_scale": 1,
    },
    "bf16": {"enabled": "auto"},
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
    },
    "scheduler": {
        "type": "WarmupLR",
        "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"},
    },
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu", "pin_memory": False, "ratio": 0.5},
        "offload_param": {"device": "cpu", "pin_memory": True},
        "overlap_comm": True,
        "contiguous_gradients": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}


def built(tmp_path, user, train=None, **deepspeed):
    path = tmp_path / "ds_config.json"
    path.write_text(user if isinstance(user, str) else json.dumps(user), encoding="utf-8")
    return deepspeed_settings(train or Train(), DeepSpeed(config=str(path), **deepspeed))


def refusal(tmp_path, user, train=None, **deepspeed):
    with pytest.raises(ConfigError) as error:
        built(tmp_path, user, train, **deepspeed)
    text = str(error.value)
    assert text.startswith((str(tmp_path), "deepspeed.config = "))
    assert "\n" not in text
    return text.removeprefix(f"{tmp_path / 'ds_config.json'}: ")


def test_without_a_file_of_the_users():
    assert deepspeed_settings(Train(max_grad_norm=0.5), DeepSpeed(stage=2)) == {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.5,
        "bf16": {"enabled": False},
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
        "zero_optimization": {"stage": 2},
    }


def test_bfloat16_keeps_gradients_in_float32():
    result = deepspeed_settings(Train(dtype="bfloat16"), DeepSpeed(stage=1))
    assert result["bf16"] == {"enabled": True}
    assert (result["communication_data_type"], result["data_types"]) == ("fp32", {"grad_accum_dtype": "fp32"})


def test_offload_is_handed_on():
    zero = deepspeed_settings(Train(), DeepSpeed(stage=3, offload_optimizer="cpu", offload_param="cpu"))[
        "zero_optimization"
    ]
    device = {"device": "cpu", "pin_memory": True}
    assert zero == {"stage": 3, "offload_optimizer": device, "offload_param": device}


def test_the_usual_file_of_hugging_face_is_taken(tmp_path):
    result = built(tmp_path, HUGGING_FACE, stage=3, offload_optimizer="cpu", offload_param="cpu")
    zero = {k: v for k, v in HUGGING_FACE["zero_optimization"].items() if v != "auto"}  # DeepSpeed itself reads none
    # What belongs to ray-align is as if there were no file.
    assert result == {
        **deepspeed_settings(Train(), DeepSpeed(stage=3)),
        "zero_optimization": zero,
        "wall_clock_breakdown": False,
    }
    assert DeepSpeedZeroConfig(**zero).max_live_parameters == 1e9


def test_auto_in_every_place(tmp_path):
    zero = {"stage": "auto", "offload_optimizer": {"device": "auto"}, "offload_param": None}
    result = built(tmp_path, {**dict.fromkeys(("train_batch_size", "comms_logger"), "auto"), "zero_optimization": zero})
    assert result == {
        **deepspeed_settings(Train(), DeepSpeed()),
        "zero_optimization": {**zero, "stage": 2, "offload_optimizer": {}},
    }


def test_values_that_say_the_same_are_taken(tmp_path):
    train = Train(batch_pairs=64, learning_rate=1e-3, max_grad_norm=2.0, weight_decay=0.1, dtype="bfloat16")
    same = {
        "train_batch_size": 64,
        "gradient_clipping": 2,
        "bf16": {"enabled": True},
        "fp16": {"enabled": False},
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "optimizer": {"type": "Adam", "params": {"lr": 0.001, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.1}},
        "zero_optimization": {"stage": 1, "offload_optimizer": {"device": "none"}},
    }
    result = built(tmp_path, same, train, stage=1)
    assert result["zero_optimization"] == same["zero_optimization"]
    assert {**result, "zero_optimization": {"stage": 1}} == deepspeed_settings(train, DeepSpeed(stage=1))


@pytest.mark.parametrize("key", ["grad_accum_dtype", "gradient_acumulation_steps", "zero_optimisation", "amp"])
def test_an_unknown_key_is_refused_by_name(tmp_path, key):
    text = refusal(tmp_path, {"steps_per_print": 1, key: "fp32"})
    assert text.startswith(f"unknown key(s): {key}. The known keys are activation_checkpointing, aio, ")


CONTRADICTIONS = [
    ({"train_batch_size": 16}, "train_batch_size = 16 contradicts train.batch_pairs = 32"),
    ({"train_micro_batch_size_per_gpu": 4}, "train_micro_batch_size_per_gpu = 4 contradicts train.micro_batch_tokens"),
    ({"gradient_accumulation_steps": 8}, "gradient_accumulation_steps = 8 contradicts train.micro_batch_tokens"),
    ({"gradient_clipping": 0.5}, "gradient_clipping = 0.5 contradicts train.max_grad_norm = 1.0"),
    (
        {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
        "zero_optimization.offload_optimizer.device = 'cpu' contradicts deepspeed.offload_optimizer = 'none'",
    ),
    (
        {"zero_optimization": {"offload_param": {"device": "nvme"}}},
        "zero_optimization.offload_param.device = 'nvme' contradicts deepspeed.offload_param = 'none'",
    ),
    ({"bf16": {"enabled": True}}, "bf16.enabled = True contradicts train.dtype = 'auto'"),
    ({"bfloat16": {"enabled": True}}, "bfloat16.enabled = True contradicts train.dtype"),
    ({"fp16": {"enabled": True}}, "fp16.enabled = True contradicts train.dtype = 'auto'; float16 is not supported"),
    ({"communication_data_type": "bf16"}, "communication_data_type = 'bf16' contradicts what ray-align sets = 'fp32'"),
    ({"data_types": {"grad_accum_dtype": "bf16"}}, "data_types.grad_accum_dtype = 'bf16' contradicts"),
    ({"optimizer": {"type": "Lamb"}}, "optimizer.type = 'Lamb': the optimizer is AdamW"),
    ({"optimizer": {"params": {"lr": 1e-4}}}, "optimizer.params.lr = 0.0001 contradicts train.learning_rate = 1e-06"),
    (
        {"optimizer": {"params": {"betas": [0.9, 0.95]}}},
        "optimizer.params.betas = [0.9, 0.95] contradicts [train.adam_beta1, train.adam_beta2] = [0.9, 0.999]",
    ),
    ({"optimizer": {"params": {"eps": 1e-6}}}, "optimizer.params.eps = 1e-06 contradicts train.adam_epsilon = 1e-08"),
    (
        {"optimizer": {"params": {"weight_decay": 0.1}}},
        "optimizer.params.weight_decay = 0.1 contradicts train.weight_decay = 0.0",
    ),
    (
        {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 100}}},
        "scheduler.params.warmup_num_steps = 100: the schedule is train.schedule = 'linear' with "
        "train.warmup_fraction = 0.1",
    ),
]


@pytest.mark.parametrize(("user", "expected"), CONTRADICTIONS, ids=[expected[:30] for _, expected in CONTRADICTIONS])
def test_a_contradiction_is_refused_with_both_values(tmp_path, user, expected):
    assert refusal(tmp_path, user).startswith(expected)


def test_a_false_that_contradicts_is_refused_too(tmp_path):
    text = refusal(tmp_path, {"bf16": {"enabled": False}}, Train(dtype="bfloat16"))
    assert text.startswith("bf16.enabled = False contradicts train.dtype")
    text = refusal(tmp_path, {"zero_optimization": {"stage": 0}}, stage=2)
    assert text.startswith("zero_optimization.stage = 0 contradicts")
    text = refusal(tmp_path, {"zero_optimization": {"overlap_comm": False}}, overlap_comm=True)
    assert text.startswith("zero_optimization.overlap_comm = False contradicts deepspeed.overlap_comm = True")


@pytest.mark.parametrize(
    ("user", "given", "stage"),
    [
        ({}, {}, 2),
        ({}, {"offload_param": "cpu"}, 3),
        ({}, {"stage": 1}, 1),
        ({"zero_optimization": {"stage": 3}}, {}, 3),
        ({"zero_optimization": {"stage": "auto"}}, {}, 2),
    ],
)
def test_an_open_stage_is_that_of_the_file_or_the_usual_one(tmp_path, user, given, stage):
    assert built(tmp_path, user, **given)["zero_optimization"]["stage"] == stage


@pytest.mark.parametrize("stage", [7, -1, True, "2"])
def test_a_stage_of_the_file_that_there_is_not(tmp_path, stage):
    said = refusal(tmp_path, {"zero_optimization": {"stage": stage}})
    assert said == f"zero_optimization.stage = {stage!r}: it must be 'auto', 0, 1, 2 or 3"


def test_keys_of_the_section_stand_beside_those_of_the_file(tmp_path):
    zero = built(tmp_path, {"zero_optimization": {"reduce_bucket_size": 2e8}}, stage=2, overlap_comm=True)
    assert zero["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 2e8, "overlap_comm": True}


@pytest.mark.parametrize("key", ["zero_optimization", "bf16", "fp16", "optimizer", "scheduler", "data_types"])
@pytest.mark.parametrize("value", ["auto", True, [1]])
def test_what_must_be_an_object_is_one(tmp_path, key, value):
    assert refusal(tmp_path, {key: value}) == f"{key} = {value!r} must be an object"


@pytest.mark.parametrize("key", ["optimizer", "scheduler"])
def test_parameters_are_an_object(tmp_path, key):
    assert refusal(tmp_path, {key: {"params": "auto"}}) == f"{key}.params = 'auto' must be an object"


@pytest.mark.parametrize(
    ("content", "expected"), [("{", " is not valid JSON: "), ("[]", " must hold a JSON object"), ("\0", " is not")]
)
def test_the_file_holds_a_json_object(tmp_path, content, expected):
    text = refusal(tmp_path, content)
    assert text.startswith(f"deepspeed.config = {str(tmp_path / 'ds_config.json')!r}{expected}")


def test_the_file_must_be_there(tmp_path):
    with pytest.raises(ConfigError, match=r"deepspeed.config = '/none.json': No such file or directory"):
        deepspeed_settings(Train(), DeepSpeed(config="/none.json"))
