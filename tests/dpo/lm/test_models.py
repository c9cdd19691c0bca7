import json
from copy import deepcopy

import pytest
import torch

from dpo.lm.hf import HuggingFaceModel
from dpo.lm.logprobs import LogprobModel
from dpo.lm.model_config import ModelError, position_limit, read_config, vocabulary_size
from dpo.lm.models import freeze, load_model
from dpo.lm.sequences import before_end, up_to_end
from dpo.lm.weight_files import weights_digest
from dpo.lm.weights import canonical_tensors, write_weights
from dpo.lm.x_transformers import XTransformersModel
from tests.dpo.tiny import CONFIGS, GPT2, LLAMA, VOCABULARY, sequence, sharpen, tiny_model, x_config

IDS = torch.tensor([[1, 2, 3, 4, 5, 6], [7, 8, 9, 0, 0, 0]])


def save(model, folder):
    """As an export writes a model: its config, then its weights by name."""
    folder.mkdir(exist_ok=True)
    model.write_config(folder)
    write_weights(folder, canonical_tensors(model.network))
    return folder


@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_model_loads_with_the_same_logits(tmp_path, name):
    model = tiny_model(name)
    loaded = load_model(save(model, tmp_path / "one"), torch.float32)
    assert type(loaded) is type(model)
    assert loaded(IDS).shape == (2, 6, VOCABULARY)
    assert torch.equal(loaded(IDS), model(IDS))
    again = save(loaded, tmp_path / "two")
    assert weights_digest(again) == weights_digest(tmp_path / "one")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_librarys_own_folder_has_the_same_weights(tmp_path, name):
    """GPT-2 ties its head, which save_pretrained leaves out too: names, logits and digest agree."""
    model = tiny_model(name)
    model.network.save_pretrained(tmp_path / "theirs")
    assert torch.equal(load_model(tmp_path / "theirs", torch.float32)(IDS), model(IDS))
    assert weights_digest(save(model, tmp_path / "ours")) == weights_digest(tmp_path / "theirs")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_loads_in_the_asked_precision(tmp_path, name):
    loaded = load_model(save(tiny_model(name), tmp_path), torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert loaded(IDS).isfinite().all()


def test_rotary_positions_are_not_rounded_in_bfloat16(tmp_path):
    """The angle of a position is a product that bfloat16 would round by whole turns."""
    model = XTransformersModel.random({**x_config(), "max_seq_len": 1024}, 0)
    loaded = load_model(save(model, tmp_path), torch.bfloat16)
    positions = torch.arange(1024)
    angles, _ = loaded.network.attn_layers.rotary_pos_emb(positions)
    expected, _ = model.network.attn_layers.rotary_pos_emb(positions)
    assert torch.equal(angles, expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_deep_copy_shares_nothing(name):
    model = tiny_model(name)
    before = model(IDS)
    copy = deepcopy(model)
    assert torch.equal(copy(IDS), before)
    sharpen(model, seed=5)
    assert not torch.equal(model(IDS), before)
    assert torch.equal(copy(IDS), before)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_seed_gives_the_same_model_and_leaves_the_generator_alone(name):
    kind = XTransformersModel if name.startswith("x-") else HuggingFaceModel
    state = torch.get_rng_state()
    one, same, other = (kind.random(CONFIGS[name], seed)(IDS) for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_stands_on_the_right_changes_nothing_before_it(name):
    model = tiny_model(name)
    other = IDS.clone()
    other[1, 3:] = 20
    torch.testing.assert_close(model(other)[1, :3], model(IDS)[1, :3], atol=1e-6, rtol=0)


# Generation

PROMPTS = [[1, 2, 3, 4, 5], [6], [7, 8, 9]]
NO_END = VOCABULARY  # no token has this id, so that it never comes


def greedy_by_hand(model, prompt, count, eos_id):
    """One prompt alone, one token at a time, without a cache; the end token is not part of the answer."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            token = model(torch.tensor([ids]))[0, -1].argmax().item()
        if token == eos_id:
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_padded_batch_continues_as_each_prompt_alone(name, seed):
    model = tiny_model(name, seed).eval()
    alone = [greedy_by_hand(model, prompt, 8, NO_END) for prompt in PROMPTS]
    assert model.generate(PROMPTS, 8, eos_id=NO_END, pad_id=0) == alone
    # The first answer's second token, made the end: that answer ends before it, the others where they meet it.
    end = alone[0][1]
    expected = [greedy_by_hand(model, prompt, 8, end) for prompt in PROMPTS]
    assert len(expected[0]) <= 1
    assert model.generate(PROMPTS, 8, eos_id=end, pad_id=0) == expected


@pytest.mark.parametrize("name", ["llama", "x-rotary"])
def test_an_end_token_within_a_prompt_does_not_end_the_answer(name):
    model = tiny_model(name).eval()
    prompts = [[1, 20, 3], [4, 5]]
    expected = [greedy_by_hand(model, prompt, 4, eos_id=20) for prompt in prompts]
    assert all(expected)
    assert model.generate(prompts, 4, eos_id=20, pad_id=0) == expected


@pytest.mark.parametrize("name", CONFIGS)
def test_a_pad_within_a_prompt_is_a_token_like_any_other(name):
    """Padding is told by place, never by id."""
    model = tiny_model(name).eval()
    prompts = [[1, 2, 3, 4], [0, 0, 5]]
    expected = [greedy_by_hand(model, prompt, 6, NO_END) for prompt in prompts]
    assert model.generate(prompts, 6, eos_id=NO_END, pad_id=0) == expected


def test_the_models_own_penalties_do_not_change_what_is_greedy():
    """A generation_config.json may hold a repetition penalty; it would fill in whatever is left unset."""
    model = tiny_model("llama").eval()
    expected = [greedy_by_hand(model, prompt, 8, NO_END) for prompt in PROMPTS]
    assert any(len(set(answer)) < len(answer) for answer in expected)  # repetition there is, to be punished
    model.network.generation_config.repetition_penalty = 50.0
    model.network.generation_config.no_repeat_ngram_size = 1
    assert model.generate(PROMPTS, 8, eos_id=NO_END, pad_id=0) == expected


@pytest.mark.parametrize("name", ["llama", "x-rotary"])
def test_tokens_are_drawn_with_the_models_own_chances_at_a_temperature(name):
    """Of 20,000 draws the shares differ from the softmax by less than their noise lets expect; none is cut off."""
    model, draws = tiny_model(name).eval(), 20_000
    if name == "llama":
        model.network.generation_config.update(top_k=1, top_p=0.1, min_p=0.9, typical_p=0.1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = model.generate([PROMPTS[0]] * draws, 1, eos_id=NO_END, pad_id=0, temperature=2.0)
    shares = torch.bincount(torch.tensor(found)[:, 0], minlength=VOCABULARY) / draws
    with torch.no_grad():
        expected = (model(torch.tensor([PROMPTS[0]]))[0, -1] / 2.0).softmax(-1)
    noise = (expected * (1 - expected) / draws).sqrt()
    assert ((shares - expected).abs() < 5 * noise + 1e-9).all()
    assert (expected > 1e-3).sum() > 5


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["llama", "x-rotary"])
def test_generating_leaves_the_mode_alone(name, training):
    model = tiny_model(name).train(training)
    model.generate(PROMPTS, 1, eos_id=NO_END, pad_id=0)
    assert {module.training for module in model.modules()} == {training}


# Dropout: the step-0 loss is ln 2 only if policy and reference are one function

DROPOUT = {
    "gpt2": {**GPT2, "resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},
    "llama": {**LLAMA, "attention_dropout": 0.5},
    "x-rotary": x_config(
        "rotary",
        {"attn_dropout": 0.5, "ff_dropout": 0.5, "layer_dropout": 0.5, "attn_sublayer_dropout": 0.5},
        emb_dropout=0.5,
    ),
    "x-without-flash": x_config("rotary", {"attn_flash": False, "attn_dropout": 0.5}),
}


@pytest.mark.parametrize("name", DROPOUT)
def test_dropout_is_off_in_training_mode(tmp_path, name):
    config = DROPOUT[name]
    kind = XTransformersModel if name.startswith("x-") else HuggingFaceModel
    model = sharpen(kind.random(config, 0), 0).train()
    save(model, tmp_path)
    if kind is HuggingFaceModel:  # the file as someone else's training left it, with its dropout
        written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
        (tmp_path / "config.json").write_text(json.dumps({**written, **config}), encoding="utf-8")
    loaded = load_model(tmp_path, torch.float32)
    for trained in (model, loaded.train()):
        first = trained(IDS)
        assert all(torch.equal(trained(IDS), first) for _ in range(5))
        torch.testing.assert_close(trained.eval()(IDS), first, atol=1e-6, rtol=0)
    assert torch.equal(loaded(IDS), model(IDS))


# Configs


def test_a_folder_without_a_config_is_no_model(tmp_path):
    with pytest.raises(ModelError, match=f"{tmp_path} is not a model folder: it has no config.json"):
        load_model(tmp_path, torch.float32)


def test_a_broken_config_says_so(tmp_path):
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match=r"config\.json is not valid JSON"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("config", "vocabulary", "limit"),
    [
        (LLAMA, VOCABULARY, 64),
        (GPT2, VOCABULARY, 64),
        (x_config("absolute"), VOCABULARY, 64),
        (x_config("rotary"), VOCABULARY, None),
        ({"model_type": "gemma3", "text_config": {"vocab_size": 7}}, 7, None),
        ({"model_type": "unknown"}, None, None),
    ],
)
def test_what_a_config_says_of_its_model(config, vocabulary, limit):
    assert (vocabulary_size(config), position_limit(config)) == (vocabulary, limit)


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (GPT2, 64),
        (LLAMA | {"rope_parameters": {"rope_type": "default"}}, None),
        (LLAMA | {"rope_theta": 10000.0}, None),  # as files of transformers 4 have it
        ({"model_type": "bloom", "alibi": True, "n_positions": 64}, None),
        ({"model_type": "t5", "relative_attention_num_buckets": 32, "n_positions": 512}, None),
        (x_config("absolute"), 64),
        (x_config("rotary"), None),
    ],
)
def test_only_learned_positions_are_a_hard_limit(config, limit):
    assert position_limit(config, learned=True) == limit


@pytest.mark.parametrize(
    ("ids", "ends", "answer"),
    [([5, 2, 7, 2], [2], [5, 2]), ([5, 7], [2], [5, 7]), ([5, 7, 2], [2, 7], [5, 7]), ([5], [], [5]), ([], [2], [])],
)
def test_where_an_answer_ends(ids, ends, answer):
    assert up_to_end(ids, ends) == answer
    if len(ends) == 1:
        assert before_end(ids, ends[0]) == [token for token in answer if token != ends[0]]


def test_freeze():
    model = tiny_model("llama").train()
    assert freeze(model) is model
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_second_model_around_one_network_computes_the_same(name):
    """Wrapped again, the parts of the last layer would be handed positions of the positions that are read."""
    once = tiny_model(name)
    again = HuggingFaceModel(once.network)
    sequences = [sequence([1, 2, 3], [4, 5, 6, 7]), sequence([1, 2, 3], [8, 9])]
    asked = LogprobModel(once), LogprobModel(again)
    first, second = (model(model.collate(sequences, 0)).logps for model in asked)
    assert torch.equal(first, second)
