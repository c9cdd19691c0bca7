"""A model whose layers lie on two devices: where each weight is, and that the numbers are those of one device.

A machine without GPUs has two devices: "cpu", and "meta", which has shapes and no numbers.
"""

import pytest
import torch

from dpo.lm.batch import collate, collate_shared
from dpo.lm.hf import HuggingFaceModel
from dpo.lm.logprobs import LogprobModel, Way
from dpo.lm.model_config import ModelError
from dpo.lm.models import freeze, load_model
from dpo.lm.spread import load_spread, places_of
from dpo.lm.weights import canonical_tensors, write_weights
from tests.dpo.tiny import CONFIGS, sequence, sharpen

CPU, META = torch.device("cpu"), torch.device("meta")
KINDS = {
    "llama": {**CONFIGS["llama"], "num_hidden_layers": 4},
    "llama-tied": {**CONFIGS["llama"], "num_hidden_layers": 4, "tie_word_embeddings": True},
    "gpt2": {**CONFIGS["gpt2"], "n_layer": 4},  # tied; its norms have other names
}
EACH_KIND = pytest.mark.parametrize("kind", KINDS)
LISTS = {"llama": "model.layers", "llama-tied": "model.layers", "gpt2": "transformer.h"}
SEQUENCES = [sequence([1, 2, 3], [4, 5]), sequence([1, 2, 3], [4, 6, 7, 8]), sequence([9], [10, 11, 12])]
WAYS = [Way(), Way(shared=False), Way(shared=False, scored_only=False)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """kind -> a model folder."""
    return {kind: folder_of(tmp_path_factory.mktemp(kind), config) for kind, config in KINDS.items()}


def folder_of(folder, config):
    model = sharpen(HuggingFaceModel.random(config, 0), 0)
    write_weights(folder, canonical_tensors(model.network))
    model.write_config(folder)
    return folder


def spread(folder, *devices):
    return freeze(load_spread(folder, torch.float32, devices))


def of_sequences(model, way=Way()):  # noqa: B008 (immutable)
    lay_out = collate_shared if way.shared else collate
    with torch.no_grad():
        return LogprobModel(model, way)(lay_out(SEQUENCES, 0)).logps


@EACH_KIND
def test_every_weight_lies_on_the_device_of_its_layer(folders, kind):
    model = spread(folders[kind], CPU, META)
    layers = [
        {tensor.device for tensor in (*layer.parameters(), *layer.buffers())}
        for layer in model.network.get_submodule(LISTS[kind])
    ]
    assert layers[0] == {CPU} and layers[-1] == {META}
    assert [len(devices) for devices in layers] == [1] * 4
    assert layers == sorted(layers, key=lambda devices: devices == {META}), "a batch would go to and fro"
    assert model.network.get_input_embeddings().weight.device == CPU
    assert model.network.get_output_embeddings().weight.device == META
    beside = {name: tensor.device for name, tensor in canonical_tensors(model.network) if f"{LISTS[kind]}." not in name}
    assert all(
        device == (META if any(part in name for part in ("norm", "ln_f", "lm_head")) else CPU)
        for name, device in beside.items()
    )
    with torch.no_grad():
        whole = dict(load_model(folders[kind], torch.float32).network.named_parameters())
        here = {n: p for n, p in model.network.named_parameters() if p.device == CPU}
    assert here and all(torch.equal(tensor, whole[name]) for name, tensor in here.items())


@EACH_KIND
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_log_probs_are_those_of_one_device(folders, kind, way):
    one = freeze(load_model(folders[kind], torch.float32))
    several = spread(folders[kind], CPU, CPU)
    assert torch.equal(of_sequences(several, way), of_sequences(one, way))
    batch = collate_shared(SEQUENCES, 0)
    with torch.no_grad():
        assert torch.equal(several.hidden(batch), one.hidden(batch))


@EACH_KIND
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_batch_goes_from_device_to_device(folders, kind, way):
    """What leaves the first device is what leaves the same layer of a whole model; what is left is on the last."""
    models = freeze(load_model(folders[kind], torch.float32)), spread(folders[kind], CPU, META)
    left = [
        number
        for number, layer in enumerate(models[1].network.get_submodule(LISTS[kind]))
        if next(layer.parameters()).device == CPU
    ]
    found = []
    for model in models:
        layer = model.network.get_submodule(LISTS[kind])[left[-1]]
        layer.register_forward_hook(lambda _module, _args, out: found.append(out))
    whole, several = (of_sequences(model, way) for model in models)
    assert torch.equal(*found)
    assert (several.device, several.shape) == (META, whole.shape)


def test_answers_are_those_of_one_device(folders):
    prompts = [[1, 2, 3], [4], [5, 6]]
    one, several = freeze(load_model(folders["llama"], torch.float32)), spread(folders["llama"], CPU, CPU)
    expected = one.generate(prompts, 6, eos_id=22, pad_id=0)
    assert several.generate(prompts, 6, eos_id=22, pad_id=0) == expected
    assert len({tuple(answer) for answer in expected}) > 1


def test_on_one_device_nothing_is_spread(folders):
    model = spread(folders["llama"], CPU)
    assert torch.equal(of_sequences(model), of_sequences(freeze(load_model(folders["llama"], torch.float32))))


def test_devices_get_equal_shares_of_the_weights():
    """Embeddings of 368 numbers, eight layers of 1,952, norm and head of 384: 16,368, a third of which is 5,456.

    The middles of the layers are at 1,344, 3,296, 5,248; 7,200, 9,152; 11,104, 13,056, 15,008.
    """
    config = {**CONFIGS["llama"], "num_hidden_layers": 8}
    network = HuggingFaceModel.random(config, 0).network
    devices = [torch.device("cuda", number) for number in range(3)]
    places = places_of(network, devices)
    numbers = [places[f"model.layers.{layer}"].index for layer in range(8)]
    assert numbers == sorted(numbers)
    assert [numbers.count(device) for device in range(3)] == [3, 2, 3]
    assert places["model.embed_tokens"] == places["model.rotary_emb"] == devices[0]
    assert places["model.norm"] == places["lm_head"] == devices[2]


def test_a_model_without_a_list_of_layers_is_refused():
    network = torch.nn.Module()
    network.add_module("one", torch.nn.Linear(2, 2))
    with pytest.raises(ModelError, match="Module has no list of layers"):
        places_of(network, [CPU, META])
