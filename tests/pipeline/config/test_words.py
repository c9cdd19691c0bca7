"""Words of TRL, Axolotl, LLaMA-Factory and OpenRLHF are answered with our key, or with the reason why there is none."""

import dataclasses
import difflib

import pytest

from pipeline.config import Config, words
from pipeline.config.hints import fields_of, of_flag
from pipeline.config.policy import Adapter
from pipeline.config.words import SECTIONS, VALUES, WORDS
from pipeline.errors import ConfigError

MINIMAL = '[data]\ntrain = "a"\n[policy]\nkind = "x-transformers"\n'

# What is typed, and what is said: our key, or words of the reason.
TYPED = """
seed = 3 | run.seed
train.seed = 3 | run.seed
train.beta = 0.1 | loss.beta
train.max_length = 512 | data.max_length
train.eval_steps = 10 | evaluate.every_steps
train.save_steps = 10 | train.checkpoint_steps
train.lr = 1e-6 | train.learning_rate
train.bf16 = true | train.dtype
train.optim = "adamw_torch" | the optimizer is AdamW
train.use_peft = true | policy.adapter: a table
train.lora_r = 8 | policy.adapter.r
train.max_steps = 100 | decide the steps
train.report_to = "wandb" | report.
train.logging_steps = 1 | every step is written to metrics.jsonl
train.micro_batch_size = 2 | train.micro_batch_tokens: it counts tokens, about 2 x pairs x data.max_length
train.batch_size = 32 | train.batch_pairs: pairs of one optimizer step, over all workers
train.num_epochs = 3 | train.epochs
train.epoch = 3 | did you mean 'epochs'
train.lr_scheduler_type = "cosine" | train.schedule
train.warmup_ratio = 0.1 | train.warmup_fraction
train.warmup_steps = 10 | a share (0 to 1) of the optimizer steps
train.gradient_checkpointing = true | train.activation_checkpointing
train.gradient_accumulation_steps = 8 | it follows from train.batch_pairs
train.zero_stage = 3 | deepspeed.stage
deepspeed.zero_stage = 3 | deepspeed.stage
data.prompt_column = "question" | data.columns: { prompt = "YOUR COLUMN" }
data.streaming = true | data are always streamed
data.num_proc = 4 | spread over the cores
data.max_samples = 100 | run.trial
data.cutoff_len = 2048 | data.max_length
loss.rpo_alpha = 1.0 | of a second [[loss]] table with kind = "sft"
loss.pref_beta = 0.1 | loss.beta
loss.loss_type = "ipo" | loss.kind
loss.simpo_gamma = 0.5 | loss.gamma: with kind = "simpo"
loss.f_divergence_type = "js" | loss.divergence
loss.reference_free = true | look at no reference
report_to = "wandb" | report.trackers
beta = 0.1 | loss.beta
learning_rate = 1e-6 | train.learning_rate
per_device_train_batch_size = 4 | this value x gradient_accumulation_steps x devices
gradient_accumulation_steps = 4 | it follows from train.batch_pairs
output_dir = "out" | run.dir: the folder of all runs; run.name names the one
dataset_name = "org/data" | data.train
model_name_or_path = "org/model" | policy.path
base_model = "org/model" | policy.path
rl = "dpo" | loss.kind: DPO is "sigmoid"
num_train_epochs = 1 | train.epochs
max_length = 512 | data.max_length
max_prompt_length = 512 | data.max_prompt_length
warmup_ratio = 0.1 | train.warmup_fraction
bf16 = true | train.dtype
attn_implementation = "sdpa" | the attention is chosen by the program
ref_model = "org/model" | reference.model
resume_from_checkpoint = true | the same command goes on from the last checkpoint
push_to_hub = true | hf upload
lora_target = "all" | policy.adapter.target_modules
pref_loss = "sigmoid" | loss.kind
dataset = "a.jsonl" | data.train
template = "llama3" | tokenizer.chat_template
finetuning_type = "lora" | policy.adapter: a table
stage = "dpo" | what is done is said by the verb
do_train = true | the verb says what is done
loss.kind = "dpo" | DPO is "sigmoid"
loss.kind = "cdpo" | "sigmoid" with loss.label_smoothing
loss.kind = "kto" | KTO is not there
train.schedule = "constant_with_warmup" | train.warmup_fraction warms up
train.dtype = "bf16" | it is "bfloat16"
policy.kind = "hf" | it is "huggingface"
deepspeed = "ds.json" | a path alone is deepspeed.config
tokenizer = "org/model" | a path alone is tokenizer.path
sequence_len = 2048 | data.max_length
micro_batch_size = 1 | train.micro_batch_tokens
val_set_size = 0.05 | data.eval: a fraction (0 to 1) of the prompts
val_size = 0.1 | data.eval: a fraction (0 to 1) of the prompts
sample_packing = true | always packed by length
pad_to_sequence_len = true | padding is left out where the model can do without
saves_per_epoch = 1 | train.checkpoint_steps: it counts optimizer steps
evals_per_epoch = 4 | evaluate.every_steps: it counts optimizer steps
dataset_prepared_path = "last_run" | run.workspace
wandb_project = "x" | report.trackers
early_stopping_patience = 3 | evaluate.best_by
load_in_4bit = true | policy.quantize: "nf4" for 4 bits
adapter = "qlora" | policy.adapter: a table
flash_attention = true | the attention is chosen by the program
train_on_inputs = false | only the answer's tokens are scored
group_by_length = false | always packed by length
tf32 = true | no kernel is to be chosen
weight_decay = 0.0 | train.weight_decay
special_tokens = "x" | tokenizer.eos_token
hub_model_id = "a/b" | hf upload
auto_resume_from_checkpoints = true | the same command goes on
rl_beta = 0.1 | loss.beta
dpo_use_weighting = true | loss.wpo
orpo_alpha = 0.1 | loss.odds_weight: with kind = "orpo"
cpo_alpha = 1.0 | loss.nll_weight: with kind = "cpo"
pref_ftx = 0.1 | of a second [[loss]] table with kind = "sft"
preprocessing_num_workers = 16 | spread over the cores
overwrite_cache = true | never out of date
overwrite_output_dir = true | --restart
plot_loss = true | curves.png is always drawn
ddp_timeout = 180000000 | Ray starts the workers
quantization_bit = 4 | policy.quantize
dpo_label_smoothing = 0.1 | loss.label_smoothing
mask_history = true | only the answer's tokens are scored
enable_liger_kernel = true | no kernel is to be chosen
pretrain = "org/model" | policy.path
ref_pretrain = "org/model" | reference.model
max_len = 1024 | data.max_length
micro_train_batch_size = 2 | train.micro_batch_tokens
train_batch_size = 128 | train.batch_pairs
max_epochs = 1 | train.epochs
l2 = 0.0 | train.weight_decay
max_norm = 1.0 | train.max_grad_norm
adam_offload = true | deepspeed.offload_optimizer
ref_offload = true | the reference scores before training
save_path = "out" | run.dir
ckpt_path = "out" | checkpoints are in the run's folder
max_ckpt_num = 3 | train.keep_checkpoints
load_checkpoint = true | the same command goes on
nll_loss_coef = 0.1 | of a second [[loss]] table with kind = "sft"
aux_loss_coef = 0.1 | no loss is added for the balance of experts
packing_samples = true | always packed by length
ring_attn_size = 2 | sharded by deepspeed.stage alone
chosen_key = "a" | data.columns: { chosen = "YOUR COLUMN" }
dataset_probs = "0.5" | a weight of 2 uses each row twice
apply_chat_template = true | data.strings: "messages" puts rows of strings
precompute_ref_log_probs = true | reference.mode
sync_ref_model = true | the reference stays as it is
loss_weights = [1, 2] | one in each [[loss]] table
trust_remote_code = true | never run
num_processes = 8 | cluster.workers
load_best_model_at_end = true | evaluate.best_by
desirable_weight = 1.0 | KTO and its weights are not there
disable_dropout = true | dropout is always off
fsdp = "full_shard" | deepspeed.stage
truncation_mode = "keep_end" | data.truncation
save_total_limit = 2 | train.keep_checkpoints
adam_betas = [0.9, 0.95] | train.adam_beta1: and train.adam_beta2
max_grad_norm = 1.0 | train.max_grad_norm
neftune_noise_alpha = 5 | there is nothing of the kind
"""
ROWS = [tuple(part.strip() for part in line.split(" | ")) for line in TYPED.strip().splitlines()]


def said_of(folder, typed):
    """The line that a file gets that holds `typed` beside the least that is needed."""
    key, _, value = typed.partition(" = ")
    section, _, field = key.rpartition(".")
    tree = {"data": {"train": '"a"'}, "policy": {"kind": '"x-transformers"'}}
    tree.setdefault(section, {})[field] = value
    top = "".join(f"{name} = {text}\n" for name, text in tree.pop("", {}).items())
    tables = [f"[{name}]\n" + "".join(f"{k} = {v}\n" for k, v in fields.items()) for name, fields in tree.items()]
    path = folder / "run.toml"
    path.write_text(top + "".join(tables), encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        Config.load(str(path))
    (line,) = [line for line in str(error.value).splitlines() if key in line]
    return line


@pytest.mark.parametrize(("typed", "expected"), ROWS, ids=[typed for typed, _ in ROWS])
def test_a_word_of_others_is_answered_with_our_key_or_the_reason(tmp_path, typed, expected):
    assert expected in said_of(tmp_path, typed)


def test_there_are_sixty_words_and_sixty_more():
    assert len({typed.partition(" = ")[0] for typed, _ in ROWS}) >= 120


def test_every_key_that_is_named_exists():
    named = {word.key for word in WORDS.values() if word.key is not None}
    for key in named:
        section, field, *inner = key.split(".")
        assert field in fields_of(Config, section), key
        assert not inner or (field == "adapter" and inner[0] in Adapter.model_fields), key
    assert {*SECTIONS.values()} <= {*Config.model_fields}
    assert all(key.partition(".")[2] in fields_of(Config, key.partition(".")[0]) for key in VALUES)


def test_no_word_hides_a_key_of_its_own_section():
    """A word that is also one of our keys must lead to that key; but what others call the model is the policy's."""
    own = {name: s for s in Config.model_fields for name in fields_of(Config, s)}
    assert WORDS["model"].key == "policy.path"
    del own["model"]
    assert [word for word in WORDS if word in own and (WORDS[word].key or "").partition(".")[2] != word] == []


def test_a_word_stands_in_one_row():
    tables = (words.MODEL, words.TOKENIZER, words.DATA, words.LOSS, words.TRAINING, words.OUTPUT)
    found = [word for table in tables for line, _, _ in table for word in line.split()]
    assert sorted(found) == sorted(set(found))


def test_every_field_of_trl_is_answered():
    trl = pytest.importorskip("trl")
    kinds = (trl.DPOConfig, trl.ModelConfig, trl.ScriptArguments)
    fields = [field.name for kind in kinds for field in dataclasses.fields(kind)]
    assert len(fields) > 120
    assert [name for name in fields if of_flag(Config, f"--{name}", "1") is None] == []


def test_a_misspelt_word_of_others_is_understood(tmp_path):
    assert "train.epochs" in said_of(tmp_path, "num_train_epoch = 3")
    assert difflib.SequenceMatcher(None, "num_train_epoch", "num_train_epochs").ratio() > 0.9


def test_a_section_of_others(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(MINIMAL + "[training]\nepochs = 1\n[dpo]\nbeta = 1\n[lora]\nr = 8\n")
    with pytest.raises(ConfigError) as error:
        Config.load(str(path))
    said = str(error.value)
    assert "there is no such section; the section is [train]" in said
    assert "there is no such section; the section is [loss]" in said
    assert "the key is policy.adapter" in said


def test_a_word_of_others_in_one_of_several_losses(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(MINIMAL + '[[loss]]\nkind = "sigmoid"\n[[loss]]\nkind = "sft"\nrpo_alpha = 1.0\n')
    with pytest.raises(ConfigError, match=r"loss\[1\]\.rpo_alpha = 1\.0: there is no such key; the key is loss"):
        Config.load(str(path))
