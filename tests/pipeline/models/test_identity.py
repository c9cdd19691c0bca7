"""What a reference is, in the eyes of the cache: its weights and what it computes, not where or how it is stored."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from dpo.lm.weight_files import weights_digest
from dpo.lm.weights import canonical_tensors, write_weights
from pipeline.config import Config
from pipeline.models.identity import identity_of
from pipeline.models.judged import refuse_untrainable
from pipeline.models.start import InitialPolicy, Weights
from pipeline.place import Place
from tests.dpo.lm.test_on_disk import SIZES
from tests.pipeline.files import config_file
from tests.pipeline.worker.small_run import LLAMA, model_folder


def identity(tmp_path, model, *overrides):
    """As a run would find it that starts from this folder."""
    path = config_file(
        tmp_path, policy={"kind": "huggingface", "path": str(model)}, run={"workspace": str(tmp_path / "workspace")}
    )
    place = Place.of(Config.load(path, list(overrides)))
    place.workspace.mkdir(exist_ok=True)
    return identity_of(InitialPolicy(place, model, 0).weights(), place.config.train.dtype)[0]


@pytest.fixture
def model(tmp_path):
    return model_folder(tmp_path / "model", LLAMA)


def change_config(folder, **entries):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | entries), encoding="utf-8")


def test_the_path_does_not_matter(tmp_path, model):
    shutil.copytree(model, tmp_path / "elsewhere")
    assert identity(tmp_path, tmp_path / "elsewhere") == identity(tmp_path, model)


def test_nor_does_the_shard_layout(tmp_path, model):
    before = identity(tmp_path, model)
    network = AutoModelForCausalLM.from_pretrained(model)
    (model / "model.safetensors").unlink()
    config = (model / "config.json").read_bytes()
    network.save_pretrained(model, max_shard_size="10KB")
    (model / "config.json").write_bytes(config)
    assert len(list(model.glob("model-*.safetensors"))) > 1
    assert identity(tmp_path, model) == before


def test_one_weight_under_the_same_path_matters(tmp_path, model):
    before = identity(tmp_path, model)
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][3] = torch.nextafter(tensors["model.norm.weight"][3], torch.tensor(9.0))
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert identity(tmp_path, model) != before


@pytest.mark.parametrize(
    "entries",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
        {"rope_theta": 500000.0},
        {"rms_norm_eps": 1e-3},
        {"hidden_act": "gelu"},
        {"num_key_value_heads": 4},
    ],
)
def test_what_the_forward_pass_reads_matters(tmp_path, model, entries):
    before = identity(tmp_path, model)
    change_config(model, **entries)
    assert identity(tmp_path, model) != before


def test_what_it_does_not_read_does_not(tmp_path, model):
    before = identity(tmp_path, model)
    change_config(model, transformers_version="9.9", use_cache=False, attention_dropout=0.1, _name_or_path="x")
    assert identity(tmp_path, model) == before


def test_the_precision_matters(tmp_path, model):
    assert identity(tmp_path, model, "train.dtype=bfloat16") != identity(tmp_path, model)


@pytest.mark.parametrize(("kind", "in_bfloat16"), [("llama", 2), ("x-transformers", 3)])
def test_only_in_bfloat16_did_the_numbers_of_the_first_version_change(tmp_path, model, kind, in_bfloat16):
    """In float32 a cache of the first version is still found."""
    change_config(model, model_type=kind)
    weights = Weights(model, "some digest")
    scorers = {dtype: identity_of(weights, dtype)[1]["scorer"] for dtype in ("float32", "bfloat16")}
    assert scorers == {"float32": 1, "bfloat16": in_bfloat16}


@pytest.mark.slow
def test_nor_do_the_names_that_a_program_saved_it_under(tmp_path):
    """As the library saves a mixture of experts, and as it holds one."""
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **SIZES, num_local_experts=2))
    network.save_pretrained(tmp_path / "saved")
    shutil.copytree(tmp_path / "saved", tmp_path / "held")
    write_weights(tmp_path / "held", canonical_tensors(network))
    (tmp_path / "workspace").mkdir()
    path = config_file(tmp_path, run={"workspace": str(tmp_path / "workspace")})
    place = Place.of(Config.load(path))
    for name in ("saved", "held"):
        refuse_untrainable(place, tmp_path / name)
    found = [InitialPolicy(place, tmp_path / name, 0).weights().digest for name in ("saved", "held")]
    assert found[0] == found[1] == weights_digest(tmp_path / "saved")
