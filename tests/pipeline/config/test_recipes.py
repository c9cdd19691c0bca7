"""Recipes as they are published for other programs: equal settings here, and every other field is named."""

import pytest
import yaml

from pipeline.cli.init import text_of
from pipeline.config import Config
from pipeline.config.recipes import fields_of, program_of, translate
from pipeline.errors import ConfigError

TRL = """
model_name_or_path: Qwen/Qwen2-0.5B-Instruct
dataset_name: trl-lib/ultrafeedback_binarized
learning_rate: 5.0e-7
num_train_epochs: 1
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
gradient_checkpointing: true
eval_strategy: steps
eval_steps: 50
logging_steps: 25
output_dir: Qwen2-0.5B-DPO
use_peft: true
lora_r: 32
loss_type: [sigmoid, sft]
loss_weights: [0.8, 0.2]
max_length: 768
bf16: true
warmup_ratio: 0.1
lr_scheduler_type: cosine
precompute_ref_log_probs: true
push_to_hub: false
"""
ZEPHYR = """accelerate launch --num_processes 8 dpo.py \\
    --model_name_or_path alignment-handbook/zephyr-7b-sft-full \\
    --dataset_name HuggingFaceH4/ultrafeedback_binarized --dataset_train_split train_prefs \\
    --beta=0.01 --loss_type ipo --per_device_train_batch_size 8 --gradient_accumulation_steps 2 \\
    --learning_rate 5e-7 --lr_scheduler_type linear --bf16 --optim adamw_torch --seed 7 \\
    --save_steps 100 --save_total_limit 1 --report_to wandb --output_dir data/zephyr-7b-dpo --attn_implementation sdpa
"""
AXOLOTL = """
base_model: meta-llama/Meta-Llama-3-8B-Instruct
rl: dpo
rl_beta: 0.2
datasets:
  - path: fozziethebeat/alpaca_messages_2k_dpo_test
    type: chat_template.default
    field_messages: conversation
    field_chosen: chosen
    field_rejected: rejected
    split: test
val_set_size: 0.05
output_dir: ./outputs/lora-out
sequence_len: 4096
sample_packing: false
adapter: lora
lora_r: 32
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 4
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
tf32: false
gradient_checkpointing: true
flash_attention: true
saves_per_epoch: 1
weight_decay: 0.1
rpo_alpha: 0.5
"""
FACTORY = """
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
stage: dpo
do_train: true
finetuning_type: full
deepspeed: examples/deepspeed/ds_z3_config.json
pref_beta: 0.1
pref_loss: simpo
simpo_gamma: 0.7
dataset: dpo_en_demo
template: llama3
cutoff_len: 2048
max_samples: 1000
preprocessing_num_workers: 16
output_dir: saves/llama3-8b/full/dpo
plot_loss: true
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 5.0e-6
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
val_size: 0.1
"""
OPEN = """deepspeed --module openrlhf.cli.train_dpo \\
   --save_path ./checkpoint/llama3-8b-dpo --save_steps -1 --logging_steps 1 --eval_steps -1 \\
   --train_batch_size 256 --micro_train_batch_size 1 --pretrain OpenRLHF/Llama-3-8b-sft-mixture \\
   --bf16 --max_epochs 1 --max_len 8192 --zero_stage 3 --learning_rate 5e-7 --beta 0.1 \\
   --dataset OpenRLHF/preference_dataset_mixture2_and_safe_pku --apply_chat_template \\
   --chosen_key chosen --rejected_key rejected --flash_attn --nll_loss_coef 0.2 \\
   --load_checkpoint --gradient_checkpointing
"""
RECIPES = {
    "trl.yaml": (
        TRL,
        "trl",
        1,
        {
            "policy.path": "Qwen/Qwen2-0.5B-Instruct",
            "data.train": "trl-lib/ultrafeedback_binarized",
            "data.eval": {"path": "trl-lib/ultrafeedback_binarized", "split": "test"},
            "data.max_length": 768,
            "loss": [{"kind": "sigmoid", "beta": 0.1, "weight": 0.8}, {"kind": "sft", "weight": 0.2}],
            "train.batch_pairs": 16,
            "train.learning_rate": 5e-7,
            "train.epochs": 1,
            "train.schedule": "cosine",
            "train.warmup_fraction": 0.1,
            "train.dtype": "bfloat16",
            "train.activation_checkpointing": True,
            "evaluate.every_steps": 50,
            "run.name": "Qwen2-0.5B-DPO",
            "run.dir": "runs",
            "policy.adapter.r": 32,
            "policy.adapter.alpha": 32.0,
            "run.seed": 42,
        },
        {"logging_steps", "precompute_ref_log_probs"},
    ),
    "zephyr.sh": (
        ZEPHYR,
        "trl",
        8,
        {
            "policy.path": "alignment-handbook/zephyr-7b-sft-full",
            "data.train": {"path": "HuggingFaceH4/ultrafeedback_binarized", "split": "train_prefs"},
            "loss.kind": "ipo",
            "loss.beta": 0.01,
            "train.batch_pairs": 128,
            "train.learning_rate": 5e-7,
            "train.epochs": 3,
            "train.schedule": "linear",
            "train.warmup_fraction": 0.0,
            "train.dtype": "bfloat16",
            "train.activation_checkpointing": True,
            "train.checkpoint_steps": 100,
            "train.keep_checkpoints": 1,
            "report.trackers": ["wandb"],
            "run.name": "zephyr-7b-dpo",
            "run.dir": "data",
            "run.seed": 7,
        },
        {"attn_implementation"},
    ),
    "axolotl.yml": (
        AXOLOTL,
        "axolotl",
        1,
        {
            "policy.path": "meta-llama/Meta-Llama-3-8B-Instruct",
            "data.train": {
                "path": "fozziethebeat/alpaca_messages_2k_dpo_test",
                "split": "test",
                "columns": {"chosen": "chosen", "rejected": "rejected", "prompt": "conversation"},
            },
            "data.eval": 0.05,
            "data.max_length": 4096,
            "loss": [{"kind": "sigmoid", "beta": 0.2}, {"kind": "sft", "weight": 0.5}],
            "train.batch_pairs": 8,
            "train.epochs": 4,
            "train.learning_rate": 2e-4,
            "train.schedule": "cosine",
            "train.dtype": "auto",
            "train.activation_checkpointing": True,
            "train.weight_decay": 0.1,
            "run.name": "lora-out",
            "run.dir": "outputs",
            "policy.adapter.r": 32,
            "run.seed": 42,
        },
        {"flash_attention", "saves_per_epoch"},
    ),
    "factory.yaml": (
        FACTORY,
        "llamafactory",
        2,
        {
            "policy.path": "meta-llama/Meta-Llama-3-8B-Instruct",
            "deepspeed.stage": 3,
            "data.train": "dpo_en_demo",
            "data.strings": "messages",
            "data.eval": 0.1,
            "data.max_length": 2048,
            "loss.kind": "simpo",
            "loss.beta": 0.1,
            "loss.gamma": 0.7,
            "train.batch_pairs": 16,
            "train.learning_rate": 5e-6,
            "train.epochs": 3,
            "train.schedule": "cosine",
            "train.warmup_fraction": 0.1,
            "train.dtype": "bfloat16",
            "run.name": "dpo",
            "run.dir": "saves/llama3-8b/full",
            "run.seed": 42,
        },
        {
            "stage",
            "do_train",
            "template",
            "max_samples",
            "preprocessing_num_workers",
            "plot_loss",
        },
    ),
    "openrlhf.sh": (
        OPEN,
        "openrlhf",
        1,
        {
            "policy.path": "OpenRLHF/Llama-3-8b-sft-mixture",
            "data.train": "OpenRLHF/preference_dataset_mixture2_and_safe_pku",
            "data.strings": "messages",
            "data.max_length": 8192,
            "loss": [{"kind": "sigmoid", "beta": 0.1}, {"kind": "sft", "weight": 0.2}],
            "train.batch_pairs": 256,
            "train.epochs": 1,
            "train.learning_rate": 5e-7,
            "train.schedule": "cosine",
            "train.warmup_fraction": 0.03,
            "train.adam_beta1": 0.9,
            "train.adam_beta2": 0.95,
            "train.dtype": "bfloat16",
            "train.activation_checkpointing": True,
            "deepspeed.stage": 3,
            "run.name": "llama3-8b-dpo",
            "run.dir": "checkpoint",
            "run.seed": 42,
        },
        {"logging_steps", "flash_attn", "load_checkpoint"},
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_published_recipe_becomes_equal_settings_and_names_the_rest(tmp_path, name):
    text, program, devices, settings, left = RECIPES[name]
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    fields = fields_of(str(path))
    assert program_of(fields) == program
    recipe = translate(Config, fields, program, devices)
    assert recipe.settings == {"policy.kind": "huggingface", **settings}
    assert set(recipe.left) | {"optimizer"} == left | {"optimizer"}
    assert all(recipe.left.values())
    written = tmp_path / "my.toml"
    written.write_text(text_of(recipe.settings, recipe), encoding="utf-8")
    config = Config.load(str(written))
    assert config.train.batch_pairs == settings["train.batch_pairs"]
    assert all(f"#   {field}: " in written.read_text(encoding="utf-8") for field in left)


@pytest.mark.parametrize("name", RECIPES)
def test_no_field_is_lost(tmp_path, name):
    """Each field that is taken away changes settings, or what is named as left or off; a few are implied."""
    text, program, devices, *_ = RECIPES[name]
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    fields = fields_of(str(path))
    whole = translate(Config, fields, program, devices)
    unseen = []
    for field in fields:
        less = translate(Config, {k: v for k, v in fields.items() if k != field}, program, devices)
        if (less.settings, less.left, less.off, less.remarks) == (whole.settings, whole.left, whole.off, whole.remarks):
            unseen.append(field)
    # What equals a default, there or here, or says it another way.
    assert set(unseen) <= {
        "cutoff_len",
        "per_device_train_batch_size",
        "gradient_checkpointing",
        "gradient_accumulation_steps",
        "pref_beta",
        "num_processes",
        "num_train_epochs",
        "optim",
        "optimizer",
        "rl",
        "lr_scheduler",
        "micro_train_batch_size",
        "chosen_key",
        "rejected_key",
        "max_epochs",
        "beta",
        "save_steps",
        "eval_steps",
        "eval_strategy",
    }


def test_a_loss_that_is_not_here_is_named(tmp_path):
    recipe = translate(Config, {"model_name_or_path": "m", "loss_type": "kto"}, "trl", 1)
    assert "loss_type" in recipe.left and not any(key.startswith("loss") for key in recipe.settings)
    recipe = translate(Config, {"optimizer": "lion_8bit", "warmup_steps": 100}, "axolotl", 1)
    assert "the optimizer is AdamW" in recipe.left["optimizer"]
    assert "a share (0 to 1)" in recipe.left["warmup_steps"]


def test_a_file_without_fields_is_refused(tmp_path):
    path = tmp_path / "a.sh"
    path.write_text("echo hello\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="no field of a recipe is in it"):
        fields_of(str(path))
    with pytest.raises(ConfigError, match="it cannot be read"):
        fields_of(str(tmp_path / "none.sh"))


def test_yaml_and_flags_are_one_recipe(tmp_path):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"beta": 0.2, "max_length": 64}))
    (tmp_path / "a.sh").write_text("trl dpo --beta 0.2 --max_length=64\n")
    assert fields_of(str(tmp_path / "a.yaml")) == fields_of(str(tmp_path / "a.sh"))


ADAPTERS = {
    "TRL": ({"use_peft": True}, {"r": 16, "alpha": 32.0}, None),
    "TRL, 4 bits": (
        {"use_peft": True, "lora_r": 8, "lora_target_modules": ["q_proj", "v_proj"], "load_in_4bit": True},
        {"r": 8, "alpha": 32.0, "target_modules": ["q_proj", "v_proj"]},
        "nf4",
    ),
    "TRL, whole": ({"use_peft": False, "lora_r": 8}, {}, None),
    "Axolotl's qlora": (
        {"base_model": "m", "adapter": "qlora", "lora_r": 32, "lora_alpha": 16, "lora_target_linear": True},
        {"r": 32, "alpha": 16, "target_modules": "all-linear"},
        "nf4",
    ),
    "LLaMA-Factory, nothing said": ({"stage": "dpo"}, {"r": 8, "alpha": 16.0}, None),
    "LLaMA-Factory": (
        {"stage": "dpo", "finetuning_type": "lora", "lora_rank": 4, "lora_target": "q_proj,v_proj"}
        | {"quantization_bit": 8, "lora_dropout": 0.1},
        {"r": 4, "alpha": 8.0, "target_modules": ["q_proj", "v_proj"]},
        "int8",
    ),
    "LLaMA-Factory, a trained one": ({"stage": "dpo", "adapter_name_or_path": "sft"}, {"path": "sft"}, None),
    "OpenRLHF": (
        {"pretrain": "m", "lora_rank": 64, "lora_dropout": 0, "target_modules": "all-linear"},
        {"r": 64, "alpha": 16.0, "target_modules": "all-linear"},
        None,
    ),
    "OpenRLHF, whole": ({"pretrain": "m", "lora_rank": 0, "lora_alpha": 16}, {}, None),
}


@pytest.mark.parametrize(("fields", "adapter", "quantize"), ADAPTERS.values(), ids=ADAPTERS.keys())
def test_adapters_of_others_are_ours(fields, adapter, quantize):
    recipe = translate(Config, fields, program_of(fields), 1)
    beginning = "policy.adapter."
    found = {key.removeprefix(beginning): v for key, v in recipe.settings.items() if key.startswith(beginning)}
    assert found == adapter
    assert recipe.settings.get("policy.quantize") == quantize
    assert ("lora_dropout" in recipe.left) == bool(fields.get("lora_dropout"))
    if not adapter and "lora_r" in fields:
        assert "lora_r" in recipe.off
