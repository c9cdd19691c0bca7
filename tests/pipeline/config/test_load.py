"""What a wrong configuration says: one clear line for each thing, with the key, its value and what to do."""

import pytest

from pipeline.config import Config
from pipeline.config.machine import Machine
from pipeline.errors import ConfigError
from tests.pipeline.files import config_file, toml
from tests.places import ROOT


def message(path, *overrides):
    with pytest.raises(ConfigError) as error:
        Config.load(path, list(overrides))
    return str(error.value)


X = {"kind": "x-transformers"}
FACES = {"kind": "huggingface"}

WRONG = [
    # a key that is not there
    ({"loss": {"bta": 0.1}}, "loss.bta = 0.1: there is no such key; did you mean 'beta'?"),
    ({"los": {"beta": 0.1}}, "los = {'beta': 0.1}: there is no such section; did you mean 'loss'?"),
    (
        {"loss": {"tau": 1}},
        "loss.tau = 1: there is no such key; it belongs to loss.kind = 'discopop'; with this kind there are: kind, "
        "weight, beta, ld_alpha, wpo, divergence, divergence_alpha, label_smoothing",
    ),
    (
        {"data": {"train": "a", "qq": 3}},
        "data.qq = 3: there is no such key; there are: train, eval, columns, verdict, ignore, scored, strings, "
        "max_length, max_prompt_length, max_completion_length, truncation, pairing, margin, duplicates, "
        "contradictions, max_rejected_fraction",
    ),
    ({"policy": {**X, "dimm": 8}}, "policy.dimm = 8: there is no such key; did you mean 'dim'?"),
    (
        {"policy": {**FACES, "path": "m", "dim": 8}},
        "policy.dim = 8: there is no such key; it belongs to policy.kind = 'x-transformers'; with this kind there are: "
        "kind, path, config, adapter, quantize",
    ),
    (
        {"policy": {**FACES, "path": "m", "adapter": {"lora_alpha": 8}}},
        "policy.adapter.lora_alpha = 8: there is no such key; write alpha",
    ),
    (
        {"policy": {**FACES, "path": "m", "adapter": {"lora_dropout": 0.1}}},
        "policy.adapter.lora_dropout = 0.1: there is no such key; dropout is off in every model here, so that policy "
        "and reference are one function; leave it out",
    ),
    (
        {"policy": {**FACES, "path": "m", "adapter": {"alpah": 8}}},
        "policy.adapter.alpah = 8: there is no such key; did you mean 'alpha'?",
    ),
    (
        {"policy": {**FACES, "path": "m", "adapter": {"r": 0}}},
        "policy.adapter.r = 0: it must be greater than or equal to 1",
    ),
    (
        {"policy": {**FACES, "path": "m", "adapter": {"init_lora_weights": "pissa"}}},
        'policy.adapter.init_lora_weights = "pissa" changes the base\'s weights, or draws on data, so that the base on '
        "disk is not what trains; use true. (A PiSSA adapter becomes a plain one by peft's conversion on saving: "
        "path_initial_model_for_weight_conversion.)",
    ),
    (
        {"policy": {**X, "adapter": {"r": 8}}},
        'policy.adapter works with policy.kind = "huggingface" only; leave it out with x-transformers',
    ),
    (
        {"policy": {**FACES, "path": "m", "quantize": "nf4"}},
        'policy.quantize = "nf4" keeps weights that cannot be trained; add [policy.adapter], or set policy.quantize = '
        '"none"',
    ),
    (
        {"policy": {**FACES, "path": "m", "quantize": "nf4", "adapter": {"r": 8}}, "deepspeed": {"stage": 3}},
        "deepspeed.stage = 3 does not shard a quantized base safely; set deepspeed.stage = 2 (each GPU then holds the "
        'whole frozen base), or policy.quantize = "none"',
    ),
    (
        {"export": {"merge": True}},
        "export.merge = true merges an adapter into its base; add [policy.adapter], or leave it out",
    ),
    # a value of another kind or outside its limits
    ({"loss": {"beta": "strong"}}, "loss.beta = 'strong': it must be a valid number"),
    ({"train": {"batch_pairs": 1.5}}, "train.batch_pairs = 1.5: it must be a valid integer"),
    ({"train": {"epochs": True}}, "train.epochs = True: it must be a valid integer"),
    ({"run": {"audit": 1}}, "run.audit = 1: it must be true or false"),
    ({"loss": {"beta": 0}}, "loss.beta = 0: it must be greater than 0"),
    ({"loss": {"beta": -0.1}}, "loss.beta = -0.1: it must be greater than 0"),
    (
        {"loss": {"kind": "dpoo"}},
        "loss.kind = 'dpoo': it must be one of 'sigmoid', 'sigmoid_norm', 'hinge', 'ipo', 'robust', 'exo_pair', "
        "'discopop', 'nca_pair', 'sppo_hard', 'apo_zero', 'apo_down', 'bco_pair', 'aot', 'aot_unpaired', 'sft', "
        "'cpo', 'simpo', 'orpo', 'mixture'",
    ),
    ({"loss": {"kind": "robust"}}, "loss.label_smoothing is missing; add it under [loss]"),
    (
        {"loss": {"kind": "hinge", "label_smoothing": 0.1}},
        "loss.label_smoothing = 0.1: there is no such key; it belongs to loss.kind = 'sigmoid' or 'robust' or "
        "'exo_pair' or 'aot' or 'aot_unpaired' or 'cpo'; with this kind there are: kind, weight, beta, ld_alpha, wpo, "
        "divergence, divergence_alpha",
    ),
    ({"loss": {"label_smoothing": 0.5}}, "loss.label_smoothing = 0.5: it must be less than 0.5"),
    ({"train": {"epochs": 0}}, "train.epochs = 0: it must be greater than or equal to 1"),
    ({"deepspeed": {"stage": 4}}, "deepspeed.stage = 4: it must be 'auto', 0, 1, 2 or 3"),
    ({"policy": {**X, "dim": "big"}}, "policy.dim = 'big': it must be a valid integer"),
    ({"policy": {**X, "decoder": 3}}, "policy.decoder = 3: it must be a valid table"),
    (
        {"run": {"name": "a/b"}},
        "run.name = 'a/b': it must begin with a letter or digit, and hold nothing but "
        "letters, digits, dots, dashes and underscores",
    ),
    ({"data": {"train": 3}}, "data.train = 3: it must be a valid string or a valid list"),
    ({"data": {"train": ["a", 3]}}, "data.train[1] = 3: it must be a valid string"),
    ({"data": {"train": "a", "eval": True}}, "data.eval = True: it must be a valid string or a valid number"),
    ({"data": {"train": {"path": 3}}}, "data.train.path = 3: it must be a valid string"),
    ({"data": {"train": ["a", {"weight": 2.0}]}}, "data.train[1].path is missing: a source needs a path"),
    (
        {"data": {"train": [{"path": "a", "weigth": 2.0}]}},
        "data.train[0].weigth = 2.0: there is no such key; there are: path, weight, split, name, columns",
    ),
    (
        {"data": {"train": {"path": "a", "weight": 99.0}}},
        "data.train.weight = 99.0: it must be less than or equal to 16",
    ),
    (
        {"data": {"train": "a", "eval": {"path": "b", "weight": 2.0}}},
        "data.eval.weight = 2.0: held-out rows count once; leave it out",
    ),
    ({"data": {"train": []}}, "data.train = []: name at least one file"),
    (
        {"data": {"train": "a", "columns": {"prompts": "q"}}},
        "data.columns.prompts: a column must be one of prompt, chosen, rejected, system, tools, conversations, "
        "completions, scores, ranks, response_a, response_b, winner, instruction, input, history",
    ),
    (
        {"data": {"train": "a", "max_prompt_length": 2000}},
        "data.max_prompt_length = 2000 never applies: data.max_length is 1024",
    ),
    ({"data": {"train": "a", "eval": 1.5}}, "data.eval as a fraction must lie between 0 and 1, it is 1.5"),
    ({"data": {"train": "a", "eval": 0}}, "data.eval as a fraction must lie between 0 and 1, it is 0.0"),
    # something that is missing
    ({"data": None}, "[data] is missing"),
    ({"data": {"max_length": 9}}, "data.train is missing; add it under [data]"),
    ({"policy": None}, "[policy] is missing"),
    # the policy
    ({"policy": {"dim": 8}}, "policy.kind is missing; set it to one of huggingface, x-transformers"),
    ({"policy": {"kind": "gpt"}}, "policy.kind = 'gpt': it must be one of 'huggingface', 'x-transformers'"),
    ({"policy": FACES}, "[policy] takes either path or config, and neither is given; give one of them"),
    (
        {"policy": {**FACES, "path": "m", "config": {"model_type": "llama"}}},
        "[policy] takes either path or config, and both are given; give one of them",
    ),
    (
        {"policy": {**FACES, "config": {"n_layer": 1}}},
        "policy.config = {'n_layer': 1} needs a model_type, for example \"llama\"",
    ),
    # keys that do not go together
    (
        {"train": {"dtype": "bfloat16"}, "deepspeed": {"stage": 0}},
        "deepspeed.stage = 0 cannot keep float32 gradients of a bfloat16 model; set deepspeed.stage = 1, "
        'or train.dtype = "float32"',
    ),
    (
        {"deepspeed": {"offload_param": "cpu", "stage": 2}},
        "deepspeed.offload_param = 'cpu' needs deepspeed.stage = 3, it is 2; set that, "
        'or deepspeed.offload_param = "none"',
    ),
    (
        {"deepspeed": {"offload_optimizer": "cpu", "stage": 0}},
        "deepspeed.offload_optimizer = 'cpu' needs deepspeed.stage = 1 to 3, it is 0; set one, "
        'or deepspeed.offload_optimizer = "none"',
    ),
    (
        {"train": {"batch_pairs": 2}, "cluster": {"workers": 3}},
        "train.batch_pairs = 2 leaves some of the 3 workers of [cluster] without a pair; raise one or lower the other",
    ),
]


@pytest.mark.parametrize(("sections", "expected"), WRONG, ids=[expected[:40] for _, expected in WRONG])
def test_one_line_says_what_is_wrong(tmp_path, sections, expected):
    path = config_file(tmp_path, **sections)
    assert message(path) == f"{path}: {expected}"


def test_every_wrong_key_gets_its_line(tmp_path):
    path = config_file(tmp_path, loss={"bta": 1}, train={"epoch": 1}, data=None)
    lines = [line.removeprefix(f"{path}: ") for line in message(path).splitlines()]
    assert sorted(lines) == [
        "[data] is missing",
        "loss.bta = 1: there is no such key; did you mean 'beta'?",
        "train.epoch = 1: there is no such key; did you mean 'epochs'?",
    ]


@pytest.mark.parametrize("value", ["inf", "nan", "-inf"])
def test_a_number_is_finite(tmp_path, value):
    path = config_file(tmp_path)
    assert message(path, f"train.learning_rate={value}").endswith(f"= {value}: it must be a finite number")


@pytest.mark.parametrize(("section", "text"), [("loss", "loss = 3\n"), ("train", "[[train]]\nepochs = 1\n")])
def test_a_section_is_no_value_and_no_array(tmp_path, section, text):
    path = tmp_path / "run.toml"
    path.write_text(text + '[data]\ntrain = "a"\n[policy]\nkind = "x-transformers"\n', encoding="utf-8")
    assert message(str(path)).endswith(f": it is a section; write [{section}] above its keys")
    assert f"{section} is a section, and the file gives it the value" in message(str(path), f"{section}.epochs=1")


# Overrides


@pytest.mark.parametrize("override", ["loss.beta", "loss.=1", ".beta=1", "=1", "loss.beta.=1", "what=1", ""])
def test_an_override_names_section_field_and_value(tmp_path, override):
    assert message(config_file(tmp_path), override) == (
        f"cannot read the override {override!r}; write section.field=value, as in loss.beta=0.05"
    )


def test_an_override_without_a_section_is_told_its_key(tmp_path):
    said = message(config_file(tmp_path), "beta=1")
    assert said.endswith("write section.field=value, as in loss.beta=0.05; the key is loss.beta")
    assert message(config_file(tmp_path), "lr=1").endswith("; the key is train.learning_rate")


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("reference.cache=None", "write reference.cache=null, which unsets it"),
        ("run.audit=True", "write run.audit=true"),
        ("run.audit=False", "write run.audit=false"),
    ],
)
def test_a_word_of_python_is_no_text(tmp_path, override, fix):
    assert message(config_file(tmp_path), override) == f"override: {override.replace('=', ' = ')}: {fix}"


def test_an_override_reaches_into_a_table(tmp_path):
    random = {**FACES, "config": {"model_type": "llama", "hidden_size": 8}}
    path = config_file(tmp_path, policy=random, reference={"labels": {"a": "b"}})
    given = ["policy.config.hidden_size=16", "policy.config.rope_scaling.factor=2.0", "data.columns.prompt=question"]
    config = Config.load(path, [*given, "reference.labels.ray.io/accelerator-type=L4", "policy.config.vocab_size=null"])
    assert config.policy.config == {"model_type": "llama", "hidden_size": 16, "rope_scaling": {"factor": 2.0}}
    assert config.data.columns == {"prompt": "question"}
    assert config.reference.labels == {"a": "b", "ray.io/accelerator-type": "L4"}


def test_an_override_below_a_value_is_refused(tmp_path):
    said = message(config_file(tmp_path), "data.train.weight=2.0")
    assert said.startswith("override: data.train.weight = 2.0: data.train = ") and said.endswith(
        "is no table, which has keys"
    )
    assert "loss.beta = 0.1 is no table" in message(config_file(tmp_path, loss={"beta": 0.1}), "loss.beta.x=1")


def test_overrides_may_be_a_mapping(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = config_file(tmp_path, loss={"beta": 0.3}, train={"epochs": 4})
    config = Config.load(
        path, {"loss.beta": 0.2, "run.dir": "out", "train.epochs": None, "policy.decoder.ff_glu": True}
    )
    assert (config.loss.beta, config.run.dir, config.train.epochs) == (0.2, str(tmp_path / "out"), 1)
    assert config.policy.decoder == {"ff_glu": True}
    with pytest.raises(ConfigError, match=r"cannot read the override 'beta=0.2'.*the key is loss\.beta"):
        Config.load(path, {"beta": 0.2})


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("loss.bta=1", "override: loss.bta = 1: there is no such key; did you mean 'beta'?"),
        ("los.beta=1", "override: los = {'beta': 1}: there is no such section; did you mean 'loss'?"),
        ("loss.beta=0", "override: loss.beta = 0: it must be greater than 0"),
        ("run.name=12", "override: run.name = 12: it must be a valid string"),
    ],
)
def test_a_wrong_override_is_not_laid_at_the_files_door(tmp_path, override, expected):
    assert message(config_file(tmp_path, loss={"beta": 0.1}), override) == expected


# Paths


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"run": {"dir": "s3://bucket/a.jsonl"}}, "run.dir"),
        ({"run": {"workspace": "s3://bucket/a.jsonl"}}, "run.workspace"),
        ({"policy": {**FACES, "path": "s3://bucket/a.jsonl"}}, "policy.path"),
        ({"tokenizer": {"path": "s3://bucket/a.jsonl"}}, "tokenizer.path"),
        ({"deepspeed": {"config": "s3://bucket/a.jsonl"}}, "deepspeed.config"),
    ],
)
def test_a_uri_is_no_path(tmp_path, sections, key):
    path = config_file(tmp_path, **sections)
    expected = f"{key} = 's3://bucket/a.jsonl': URIs are not read here; copy it to a folder that every node sees"
    assert message(path) == expected
    assert message(config_file(tmp_path), "run.dir=gs://x") == expected.replace(key, "run.dir").replace(
        "s3://bucket/a.jsonl", "gs://x"
    )


@pytest.mark.parametrize("value", ["~nobody-of-that-name/a.jsonl", "a\0b"])
def test_a_path_that_no_system_takes(tmp_path, value):
    text = message(config_file(tmp_path, data={"train": value}))
    assert text.startswith(f"data.train = {value!r} is not a usable path: ")


def test_a_range_of_workers_rises(tmp_path):
    said = message(config_file(tmp_path), "cluster.workers=[4, 2]")
    assert said == (
        "override: cluster.workers = [4, 2]: the first is the least number of workers, and it is above the second, the "
        "most; write [2, 4]"
    )
    assert message(config_file(tmp_path), "cluster.workers=[1]").endswith("give a number from 1, or [least, most]")


# The file


def test_there_must_be_a_file(tmp_path):
    path = str(tmp_path / "none.toml")
    assert (
        message(path) == f"no configuration at {path}: No such file or directory. Give the path of a TOML or YAML file."
    )
    assert message(str(tmp_path)) == (
        f"{tmp_path} is a folder, and not that of a run: it has no config.json with a run's settings. Give the path "
        "of a TOML or YAML file, or of a run's folder."
    )


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.toml")), ids=lambda path: path.stem)
def test_a_runs_folder_gives_the_settings_that_it_keeps(tmp_path, example):
    """Its place and its name are those of the folder, wherever it was moved."""
    config = Config.load(str(example)).settled(Machine(0), Machine(0))
    folder = tmp_path / "moved"
    folder.mkdir()
    (folder / "config.json").write_text(config.model_dump_json(), encoding="utf-8")
    run = config.run.model_copy(update={"dir": str(tmp_path), "name": "moved"})
    found = Config.load(str(folder))
    assert found.model_dump() == config.model_copy(update={"run": run}).model_dump()


def test_keys_of_an_adapter_that_were_left_out_are_left_out(tmp_path):
    (tmp_path / "adapter").mkdir()
    policy = {"kind": "huggingface", "path": "base", "adapter": {"path": "adapter", "r": 4}}
    config = Config.load(config_file(tmp_path, policy=policy))
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.json").write_text(config.model_dump_json(), encoding="utf-8")
    assert Config.load(str(tmp_path / "one")).policy.adapter.model_fields_set == {"path", "r"}


def test_it_must_be_toml(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('[loss]\nbeta = "a\n', encoding="utf-8")
    text = message(str(path))
    assert text.startswith(f"{path} is not valid TOML: ")
    assert "line 2" in text


def test_a_byte_order_mark_is_no_text(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text((tmp_path / config_file(tmp_path)).read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert Config.load(str(path)).data.train == str(tmp_path / "pairs.jsonl")


def test_it_must_be_utf8(tmp_path):
    path = tmp_path / "run.toml"
    path.write_bytes(b'[run]\nname = "\xe9"\n')
    assert message(str(path)) == f"{path} is not UTF-8 text (invalid continuation byte at byte 14); is it TOML?"


@pytest.mark.parametrize(
    "key", ["data.train", "data.eval", "run.dir", "run.workspace", "reference.cache", "policy.path", "tokenizer.path"]
)
@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_path_is_not_the_current_folder(tmp_path, key, value):
    section, field = key.split(".")
    said = f"{key} is empty. Name what it should be, or leave the key out ({key}=null unsets it)."
    assert message(config_file(tmp_path), f"{key}={value}") == said
    given = {**({"train": "a.jsonl"} if section == "data" else {}), **(FACES if section == "policy" else {})}
    assert message(config_file(tmp_path, **{section: {**given, field: value}})) == said
    if section == "data":
        assert message(config_file(tmp_path, data={**given, field: {"path": value}})) == said
        assert message(config_file(tmp_path), f"data.train=['a.jsonl', '{value}']") == said.replace(key, "data.train")


# Credentials

URIS = [
    "s3://AKIA:{}@bucket/pairs.jsonl",
    "https://user:{}@127.0.0.1:9/pairs.jsonl",
    "https://{}@host/pairs.jsonl",
    "simplecache::s3://AKIA:{}@bucket/*.jsonl",
    "https://host/pairs.jsonl?X-Amz-Signature={}",
    "https://host/pairs.jsonl?a=1&access_token={}",
    "https://account.blob.core.windows.net/c/pairs.jsonl?sv=1&sig={}",
    "https://host/pairs.jsonl?api_key={}&b=2",
]
PLACES = [
    lambda uri: {"data": {"train": uri}},
    lambda uri: {"data": {"train": ["a.jsonl", uri]}},
    lambda uri: {"data": {"train": [{"path": uri, "weight": 2}]}},
    lambda uri: {"data": {"train": "a.jsonl", "eval": {"path": uri}}},
    lambda uri: {"reference": {"cache": uri}},
    lambda uri: {"policy": {**FACES, "path": uri}},
    lambda uri: {"tokenizer": {"path": uri}},
    lambda uri: {"run": {"workspace": uri}},
    lambda uri: {"cluster": {"address": uri}},
    lambda uri: {"nothing": {"key": uri}},
]


@pytest.mark.parametrize("uri", URIS)
@pytest.mark.parametrize("sections", PLACES)
def test_credentials_in_a_uri_are_refused_and_not_shown(tmp_path, sections, uri):
    said = message(config_file(tmp_path, **{"data": {"train": "a.jsonl"}, **sections(uri.format("hunter2"))}))
    assert "credentials come from the environment" in said and "hunter2" not in said and "AKIA" not in said
    for section, fields in sections(uri.format("hunter2")).items():
        for field, value in ((f, v) for f, v in fields.items() if "hunter2" in toml(v)):
            said = message(config_file(tmp_path), f"{section}.{field}={toml(value)}")
            assert "hunter2" not in said and "AKIA" not in said


def test_credentials_in_a_word_that_is_no_override(tmp_path):
    said = message(config_file(tmp_path), "s3://AKIA:hunter2@bucket/pairs.jsonl")
    assert said == "cannot read the override '...'; write section.field=value, as in loss.beta=0.05"


@pytest.mark.parametrize(
    "uri", ["s3://bucket/a@b.jsonl", "https://host/a.jsonl?revision=main", "hf://datasets/me/name@main/a.jsonl"]
)
def test_a_uri_without_credentials_stays(tmp_path, uri):
    assert Config.load(config_file(tmp_path), [f"data.train={uri}"]).data.train == uri
