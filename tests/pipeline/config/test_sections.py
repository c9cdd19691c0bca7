import inspect
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from dpo import LOSSES
from dpo.terms import COUPLED, Term, reference_free
from pipeline.config import Adapter, Config, HuggingFacePolicy, XTransformersPolicy
from pipeline.config.losses import SigmoidLoss
from pipeline.errors import ConfigError
from tests.pipeline.files import MINIMAL, config_file

# Every key of every section, with a value that is not its default.
EVERY_KEY = {
    "run": {"name": "other-run.2", "dir": "/d", "workspace": "/w", "seed": 3, "trial": 9, "audit": True},
    "data": {
        "train": ["/a.jsonl", "/b.parquet"],
        "eval": 0.25,
        "columns": {"prompt": "question"},
        "verdict": {"1": "a", "0": "b"},
        "ignore": ["context"],
        "scored": "last",
        "strings": "messages",
        "max_length": 77,
        "max_prompt_length": 55,
        "max_completion_length": 44,
        "duplicates": "drop",
        "contradictions": "drop",
        "pairing": "all",
        "margin": 0.5,
        "truncation": "keep_end",
        "max_rejected_fraction": 0.5,
    },
    "tokenizer": {"path": "bytes", "eos_token": "<end>", "chat_template": "chatml", "template_options": {"a": 1}},
    "policy": {
        "kind": "x-transformers",
        "path": "/model",
        "dim": 16,
        "depth": 1,
        "heads": 2,
        "max_length": 99,
        "positions": "absolute",
        "decoder": {"ff_glu": True},
        "wrapper": {"tie_embedding": True},
    },
    "sft": {
        "epochs": 2,
        "batch_pairs": 8,
        "micro_batch_tokens": 100,
        "learning_rate": 0.5,
        "schedule": "cosine",
        "warmup_fraction": 0.25,
        "weight_decay": 0.125,
        "adam_beta1": 0.5,
        "adam_beta2": 0.75,
        "adam_epsilon": 1e-6,
        "max_grad_norm": 2.0,
        "completions": "both",
    },
    "reference": {
        "model": "base",
        "mode": "overlap",
        "by": "pool",
        "overlap_steps": 7,
        "cache": "s3://bucket/cache",
        "resources": {"scorer": 1.0},
        "labels": {"kind": "L4"},
        "actors": 2,
        "cpus_per_actor": 3,
        "gpus_per_actor": 1,
        "batch_sequences": 64,
        "batch_tokens": 4096,
        "guard_tolerance": 0.001,
    },
    "loss": {
        "kind": "sigmoid",
        "weight": 0.5,
        "beta": 0.25,
        "ld_alpha": 0.5,
        "wpo": True,
        "label_smoothing": 0.125,
        "divergence": "js",
        "divergence_alpha": 0.25,
    },
    "train": {
        "epochs": 3,
        "batch_pairs": 16,
        "micro_batch_tokens": 200,
        "learning_rate": 0.25,
        "schedule": "constant",
        "warmup_fraction": 0.5,
        "weight_decay": 0.25,
        "adam_beta1": 0.25,
        "adam_beta2": 0.5,
        "adam_epsilon": 1e-7,
        "max_grad_norm": 0.0,
        "share_prompts": False,
        "activation_checkpointing": False,
        "deterministic": True,
        "dtype": "bfloat16",
        "checkpoint_minutes": 0.5,
        "checkpoint_steps": 7,
        "keep_checkpoints": 1,
        "max_failures": 0,
    },
    "deepspeed": {
        "stage": 3,
        "offload_optimizer": "cpu",
        "offload_param": "cpu",
        "overlap_comm": True,
        "reduce_bucket_size": 10,
        "stage3_prefetch_bucket_size": 20,
        "stage3_max_live_parameters": 30,
        "config": "/ds.json",
    },
    "cluster": {
        "address": "auto",
        "workers": [2, 4],
        "cpus_per_worker": 2,
        "gpus_per_worker": 1,
        "resources": {"trainer": 1.0},
        "labels": {"kind": "A100"},
        "start_minutes": 7.5,
    },
    "evaluate": {"every_steps": 5, "best_by": "loss", "generate_prompts": 4, "max_new_tokens": 9},
    "export": {"merge": False, "dtype": "float32"},
    "report": {"tensorboard": False, "trackers": ["wandb", "mlflow"], "show_answers": 0, "ray_logs": True},
}
ONLY_KIND = {
    ("loss", "kind"),
    ("policy", "kind"),
    ("train", "activation_checkpointing"),
    ("reference", "by"),
    ("export", "merge"),
}  # one value only for this policy or this mode, or no default


def keys(config):
    return {(section, field) for section, fields in config.model_dump().items() for field in fields}


def test_every_key_loads(tmp_path):
    config = Config.load(config_file(tmp_path, **EVERY_KEY))
    assert config.model_dump() == EVERY_KEY


def test_every_key_is_in_the_test_above_and_is_not_its_default(tmp_path):
    defaults = Config.load(config_file(tmp_path))
    assert keys(defaults) == {(section, field) for section, fields in EVERY_KEY.items() for field in fields}
    tree = defaults.model_dump()
    same = {(s, f) for s, fields in EVERY_KEY.items() for f, value in fields.items() if tree[s][f] == value}
    assert same == ONLY_KIND


def test_defaults_apply_to_what_is_left_out(tmp_path):
    config = Config.load(config_file(tmp_path, train={"batch_pairs": 4}))
    assert config.train.batch_pairs == 4
    assert config.train == type(config.train)(batch_pairs=4)
    assert (config.train.learning_rate, config.sft.learning_rate) == (1e-6, 1e-5)
    assert (config.train.epochs, config.sft.epochs) == (1, 0)
    assert (config.loss.beta, config.data.max_length, config.train.checkpoint_minutes) == (0.1, 1024, 15.0)
    assert isinstance(config.policy, XTransformersPolicy)


ADAPTER = {
    "path": "/adapter",
    "r": 4,
    "alpha": 6.0,
    "target_modules": ["q_proj"],
    "target_parameters": ["mlp.experts.down_proj"],
    "modules_to_save": ["lm_head"],
    "use_dora": True,
    "use_rslora": True,
    "init_lora_weights": "gaussian",
    "lora_plus_ratio": 4.0,
}


def test_every_key_of_an_adapter_loads_and_may_be_overridden(tmp_path):
    policy = {"kind": "huggingface", "path": "/model", "adapter": ADAPTER}
    path = config_file(tmp_path, policy=policy)
    assert Config.load(path).policy.model_dump() == {**policy, "config": None, "quantize": "none"}
    plain = Adapter().model_dump()
    assert plain.keys() == ADAPTER.keys() and all(plain[name] != value for name, value in ADAPTER.items())
    changed = Config.load(path, ["policy.adapter.r=8", "policy.adapter.path=null"]).policy.adapter
    assert changed.model_dump() == {**ADAPTER, "r": 8, "path": None}
    assert Config.load(path, ["policy.adapter=null"]).policy.adapter is None


def test_paths_of_models_are_relative_to_the_file_and_words_are_none(tmp_path):
    for name in ("mine", "start", "base"):
        (tmp_path / name).mkdir()
    policy = {"kind": "huggingface", "path": "mine", "adapter": {"path": "mine"}}
    config = Config.load(config_file(tmp_path, policy=policy, reference={"model": "mine"}))
    assert {config.policy.path, config.policy.adapter.path, config.reference.model} == {str(tmp_path / "mine")}
    assert Config.load(config_file(tmp_path, policy=policy, reference={"model": "base"})).reference.model == "base"


def test_a_policy_has_the_keys_of_its_kind(tmp_path):
    config = Config.load(config_file(tmp_path, policy={"kind": "huggingface", "path": "gpt2"}))
    assert config.policy == HuggingFacePolicy(kind="huggingface", path="gpt2")
    random = {"kind": "huggingface", "config": {"model_type": "llama", "hidden_size": 8}}
    assert Config.load(config_file(tmp_path, policy=random)).policy.config == random["config"]


def test_an_override_beats_the_file_and_the_file_beats_the_default(tmp_path):
    path = config_file(tmp_path, loss={"beta": 0.3}, train={"epochs": 4})
    config = Config.load(path, ["loss.beta=0.7", "cluster.workers=2", "loss.beta=0.8"])
    assert (config.loss.beta, config.train.epochs, config.cluster.workers) == (0.8, 4, 2)
    assert config.loss.label_smoothing == 0.0


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("run.name=softer", "softer"),
        ('run.name="softer"', "softer"),
        ("run.seed=7", 7),
        ("run.audit=true", True),
        ("train.learning_rate=1e-3", 1e-3),
        ("train.learning_rate=1", 1),
        ('data.train=["/a.jsonl", "/b.jsonl"]', ["/a.jsonl", "/b.jsonl"]),
        ("data.eval=0.1", 0.1),
        ("policy.decoder={ff_glu = true}", {"ff_glu": True}),
        (" run.name = softer ", "softer"),
        ("tokenizer.eos_token=a=b", "a=b"),
    ],
)
def test_the_value_of_an_override_is_toml_or_else_a_word(tmp_path, override, value):
    section, field = override.partition("=")[0].strip().split(".")
    assert getattr(getattr(Config.load(config_file(tmp_path), [override]), section), field) == value


# Paths


def test_paths_of_a_file_are_relative_to_it_and_those_of_an_override_to_the_current_folder(tmp_path, monkeypatch):
    project, here = tmp_path / "project", tmp_path / "here"
    project.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    path = config_file(project, run={"dir": "runs", "workspace": "../shared"}, data={"train": ["a.jsonl", "/b.jsonl"]})
    config = Config.load(path)
    assert (config.run.dir, config.run.workspace) == (str(project / "runs"), str(tmp_path / "shared"))
    assert config.data.train == [str(project / "a.jsonl"), "/b.jsonl"]
    config = Config.load(path, ["run.dir=elsewhere", "data.eval=held.jsonl", "deepspeed.config=ds.json"])
    assert (config.run.dir, config.data.eval) == (str(here / "elsewhere"), str(here / "held.jsonl"))
    assert (config.deepspeed.config, config.run.workspace) == (str(here / "ds.json"), str(tmp_path / "shared"))


def test_the_toml_itself_may_be_named_by_a_relative_path(tmp_path, monkeypatch):
    config_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert Config.load("run.toml").data.train == str(tmp_path / "pairs.jsonl")


def test_a_tilde_is_the_home_folder(tmp_path):
    config = Config.load(config_file(tmp_path, data={"train": "~/pairs.jsonl"}))
    assert config.data.train == str(Path.home() / "pairs.jsonl")


def test_a_model_is_a_path_where_it_looks_like_one_or_is_there_and_a_name_elsewhere(tmp_path):
    def load(path):
        return Config.load(config_file(tmp_path, policy={"kind": "huggingface", "path": path})).policy.path

    assert load("org/model") == "org/model"
    assert load("./org/model") == str(tmp_path / "org" / "model")
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert load("org/model") == str(tmp_path / "org" / "model")


def test_data_are_a_path_where_their_folder_is_there(tmp_path):
    def load(path):
        return Config.load(config_file(tmp_path, data={"train": path})).data.train

    assert load("org/pairs") == "org/pairs"
    (tmp_path / "org").mkdir()
    assert load("org/pairs") == str(tmp_path / "org" / "pairs")


def test_a_chat_template_may_be_its_own_text(tmp_path):
    """Longer than a file name can be, and with a URI in it."""
    text = "{{ messages[0].content }} https://example.org " * 20
    assert Config.load(config_file(tmp_path, tokenizer={"chat_template": text})).tokenizer.chat_template == text


# What the object promises


def test_a_trial_is_a_run_of_its_own(tmp_path):
    config = Config.load(config_file(tmp_path, run={"name": "x"}))
    assert (config.as_trial().run.name, config.as_trial().run.trial) == ("x-trial", 32)
    assert Config.load(config_file(tmp_path), ["run.trial=5"]).as_trial().run.trial == 5
    assert config.run.trial is None


def test_a_configuration_cannot_be_changed(tmp_path):
    config = Config.load(config_file(tmp_path))
    with pytest.raises(ValidationError, match="frozen"):
        config.loss.beta = 1.0


def test_it_loads_again_from_its_own_json(tmp_path):
    config = Config.load(config_file(tmp_path, **EVERY_KEY))
    assert Config.model_validate(json.loads(config.model_dump_json())) == config


def test_the_text_under_a_field_is_its_help():
    assert SigmoidLoss.model_fields["beta"].description.startswith("Strength of the pull")


def test_data_and_policy_are_all_that_must_be_given():
    assert MINIMAL.keys() == {name for name, field in Config.model_fields.items() if field.is_required()}


def test_activations_are_checkpointed_where_the_model_can(tmp_path):
    with pytest.raises(ConfigError, match=r"train\.activation_checkpointing = true works with Hugging Face policies"):
        Config.load(config_file(tmp_path), ["train.activation_checkpointing=true"])
    gpt2 = config_file(tmp_path, policy={"kind": "huggingface", "path": "gpt2"})
    assert Config.load(gpt2, ["train.activation_checkpointing=true"]).train.activation_checkpointing


def test_layers_are_spread_over_gpus_where_the_model_can(tmp_path):
    with pytest.raises(ConfigError, match=r"reference\.gpus_per_actor = 2 spreads the layers of Hugging Face"):
        Config.load(config_file(tmp_path), ["reference.gpus_per_actor=2"])
    gpt2 = config_file(tmp_path, policy={"kind": "huggingface", "path": "gpt2"})
    assert Config.load(gpt2, ["reference.gpus_per_actor=4"]).reference.gpus_per_actor == 4


def test_trainers_score_before_training_only(tmp_path):
    path = config_file(tmp_path, reference={"by": "trainers"})
    assert Config.load(path).reference.by == "trainers"
    with pytest.raises(ConfigError, match=r'reference\.by = "trainers" .*reference\.mode = "overlap"'):
        Config.load(path, ["reference.mode=overlap"])


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"data": {"train": "pairs.jsonl"}, "evaluate": {"every_steps": 5, "best_by": "loss"}}, "data.eval"),
        ({"data": {"train": "pairs.jsonl", "eval": 0.1}, "evaluate": {"best_by": "loss"}}, "evaluate.every_steps"),
    ],
)
def test_the_best_evaluation_needs_evaluations(tmp_path, changes, missing):
    with pytest.raises(ConfigError, match=rf'evaluate\.best_by = "loss" compares evaluations; set {missing} too'):
        Config.load(config_file(tmp_path, **changes))


OWN_DEFAULTS = {"simpo": {"beta": 2.0}}  # of the configuration, where a loss has no default or the papers' differ


@pytest.mark.parametrize("kind", LOSSES)
def test_every_loss_is_configured_by_its_own_options(tmp_path, kind):
    """What a section holds is what the function takes, with the same defaults."""
    options = {"label_smoothing": 0.1} if kind == "robust" else {}
    term, *rest = Config.load(config_file(tmp_path, loss={"kind": kind, **options})).mixture
    assert (term.kind, term.weight, term.coupled) == (kind, 1.0, kind in COUPLED)
    assert rest == ([Term("sft")] if kind == "cpo" else [])
    _, _, *taken = inspect.signature(LOSSES[kind]).parameters.values()
    names = {option.name for option in taken} - {"baseline"}  # which is the training's to know
    assert term.options.keys() == names
    defaults = {o.name: o.default for o in taken if o.default is not o.empty and o.name in names}
    beta = {"beta": 0.1} if "beta" in names else {}
    assert term.options == {**beta, **defaults, **OWN_DEFAULTS.get(kind, {}), **options}


def test_losses_with_weights_are_a_list(tmp_path):
    path = config_file(tmp_path)
    Path(path).write_text(
        Path(path).read_text(encoding="utf-8")
        + '[[loss]]\nkind = "sigmoid"\nweight = 0.8\nld_alpha = 0.5\n'
        + '[[loss]]\nkind = "bco_pair"\nweight = 0.2\nrunning_baseline = true\n[[loss]]\nkind = "sft"\n',
        encoding="utf-8",
    )
    config = Config.load(path)
    sigmoid, bco, sft = config.mixture
    assert (sigmoid.kind, sigmoid.weight, sigmoid.ld_alpha, sigmoid.options["beta"]) == ("sigmoid", 0.8, 0.5, 0.1)
    assert bco == Term("bco_pair", {"beta": 0.1}, weight=0.2, running_baseline=True)
    assert sft == Term("sft")
    assert not reference_free(config.mixture) and reference_free((sft,))
    assert Config.model_validate(json.loads(config.model_dump_json())) == config


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("kind = 'ipo'\nbeta = 0", "loss[1].beta = 0: it must be greater than 0"),
        ("kind = 'ipo'\ntau = 1.0", "loss[1].tau = 1.0: there is no such key"),
        ("kind = 'ippo'", "loss[1].kind = 'ippo': it must be one of 'sigmoid', "),
        ("beta = 0.1", "loss[1].kind is missing"),
        (
            "kind = 'bco_pair'\nwpo = true\nrunning_baseline = true",
            "loss[1]: loss.running_baseline = true cannot be combined with",
        ),
    ],
)
def test_what_is_wrong_with_one_of_several_losses(tmp_path, table, message):
    path = config_file(tmp_path)
    text = Path(path).read_text(encoding="utf-8") + f"[[loss]]\nkind = 'sigmoid'\n[[loss]]\n{table}\n"
    Path(path).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        Config.load(path)
    assert message in str(error.value)
