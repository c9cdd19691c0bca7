import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dpo.lm import weights
from dpo.lm.weight_files import WeightsError, weights_digest
from dpo.lm.weights import canonical_tensors, fill, read_weights, write_weights
from tests.dpo.tiny import tiny_model


def small_network(seed=0):
    """Two layers, a buffer that belongs on disk, and one that does not."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2, bias=False))
    network.register_buffer("steps", torch.tensor(seed))
    network.register_buffer("scratch", torch.zeros(5), persistent=False)
    return network


def test_each_tensor_once_and_only_what_belongs_on_disk():
    network = small_network()
    network.tied = network[0]
    assert [name for name, _ in canonical_tensors(network)] == ["0.weight", "0.bias", "1.weight", "steps"]


@pytest.mark.parametrize("name", ["llama", "gpt2", "x-rotary", "x-absolute-tied"])
def test_canonical_tensors_rebuild_a_network(tmp_path, name):
    """Written and filled back, another random network answers as the first."""
    one, other = tiny_model(name, seed=0), tiny_model(name, seed=1)
    ids = torch.arange(1, 9).unsqueeze(0)
    assert not torch.equal(one(ids), other(ids))
    write_weights(tmp_path, canonical_tensors(one.network))
    fill(other.network, tmp_path)
    assert torch.equal(one(ids), other(ids))


def test_one_file_where_all_fit(tmp_path):
    write_weights(tmp_path, canonical_tensors(small_network()))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_shards_have_an_index_and_the_same_digest(tmp_path, monkeypatch):
    """Bytes: 48 + 12 + 24 + 8. With at most 60 a shard: {0.weight, 0.bias} and {1.weight, steps}; the total is 92."""
    network = small_network()
    one, many = tmp_path / "one", tmp_path / "many"
    one.mkdir()
    many.mkdir()
    write_weights(one, canonical_tensors(network))
    monkeypatch.setattr(weights, "SHARD_BYTES", 60)
    write_weights(many, canonical_tensors(network))
    index = json.loads((many / "model.safetensors.index.json").read_text(encoding="utf-8"))
    first, second = "model-00001.safetensors", "model-00002.safetensors"
    assert index == {
        "metadata": {"total_size": 92},
        "weight_map": {"0.weight": first, "0.bias": first, "1.weight": second, "steps": second},
    }
    assert load_file(many / first).keys() == {"0.weight", "0.bias"}
    assert load_file(many / second).keys() == {"1.weight", "steps"}
    assert weights_digest(many) == weights_digest(one)
    other = small_network(seed=1)
    fill(other, many)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(network.parameters(), other.parameters(), strict=True))


def test_a_tensor_larger_than_a_shard_stands_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SHARD_BYTES", 1)
    write_weights(tmp_path, canonical_tensors(small_network()))
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    assert dict(read_weights(tmp_path)).keys() == {"0.weight", "0.bias", "1.weight", "steps"}


def test_the_index_says_which_files_count(tmp_path, monkeypatch):
    """A stray file beside the shards is not the model's."""
    monkeypatch.setattr(weights, "SHARD_BYTES", 60)
    write_weights(tmp_path, canonical_tensors(small_network()))
    before = weights_digest(tmp_path)
    save_file({"stray": torch.ones(1)}, tmp_path / "adapter.safetensors")
    assert weights_digest(tmp_path) == before


def digest_of(folder, **tensors):
    folder.mkdir()
    write_weights(folder, tensors.items())
    return weights_digest(folder)


def test_the_digest_is_of_the_weights_and_not_of_the_folder(tmp_path):
    a, b = torch.arange(6.0), torch.ones(2, 2)
    assert digest_of(tmp_path / "here", a=a, b=b) == digest_of(tmp_path / "there", b=b, a=a)


def test_the_digest_sees_every_change(tmp_path):
    a, b = torch.arange(6.0), torch.ones(2, 2)
    nudged = a.clone()
    nudged[3] = torch.nextafter(a[3], torch.tensor(9.0))  # the smallest change that there is
    digests = {
        digest_of(tmp_path / "as it is", a=a, b=b),
        digest_of(tmp_path / "one element", a=nudged, b=b),
        digest_of(tmp_path / "another name", c=a, b=b),
        digest_of(tmp_path / "names exchanged", a=b, b=a),
        digest_of(tmp_path / "another shape", a=a.view(2, 3), b=b),
        digest_of(tmp_path / "same bytes, another type", a=a.view(torch.int32), b=b),
        digest_of(tmp_path / "one more", a=a, b=b, c=b.clone()),
    }
    assert len(digests) == 7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.int64])
def test_any_type_and_a_scalar_have_a_digest(tmp_path, dtype):
    zero, one = torch.tensor(0).to(dtype), torch.tensor(1).to(dtype)
    assert digest_of(tmp_path / "0", a=zero) != digest_of(tmp_path / "1", a=one)


@pytest.mark.parametrize("head", ["lm_head.weight", "embed_out.weight"])
def test_a_tied_head_may_be_written_or_not(tmp_path, head):
    embedding = torch.arange(6.0).view(3, 2)
    bare = digest_of(tmp_path / "bare", **{"embed.weight": embedding})
    assert digest_of(tmp_path / "tied", **{"embed.weight": embedding, head: embedding.clone()}) == bare
    assert digest_of(tmp_path / "own head", **{"embed.weight": embedding, head: embedding + 1}) != bare


def test_another_weight_that_repeats_one_is_kept(tmp_path):
    weight = torch.ones(2, 2)
    assert digest_of(tmp_path / "one", a=weight) != digest_of(tmp_path / "two", a=weight, b=weight.clone())


def written(folder, change):
    """A folder with the small network's weights, changed."""
    tensors = {name: tensor.detach().clone() for name, tensor in canonical_tensors(small_network())}
    change(tensors)
    write_weights(folder, tensors.items())
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("1.weight"), r"lacks 1 weights of the model, '1\.weight' first"),
        (lambda tensors: tensors.update(extra=torch.ones(1)), "has weights named 'extra'"),
        (
            lambda tensors: tensors.update({"0.bias": torch.ones(4)}),
            r"'0\.bias' has shape \(4,\), but the model needs \(3,\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, change, message):
    with pytest.raises(WeightsError, match=message):
        fill(small_network(), written(tmp_path, change))


def test_a_folder_without_weights_says_so(tmp_path):
    with pytest.raises(WeightsError, match=f"{tmp_path} holds no safetensors weights"):
        weights_digest(tmp_path)
