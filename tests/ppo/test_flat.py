"""The flat pass against the padded one: the same numbers from fewer positions and fewer rows of logits."""

import copy
from itertools import pairwise

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from dpo.lm.x_transformers import XTransformersModel
from ppo import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer, XTransformersWithValueHead
from ppo.flat import FlatForward, plain, spread
from ppo.forward import forward, forward_in_chunks, with_positions
from ppo.inputs import decoder_inputs, response_mask, token_sequences
from ppo.losses import entropy_from_logits, loss_sums
from ppo.update import Batch
from tests.ppo import tiny
from tests.ppo.trials import QUIET, same

pytestmark = QUIET
WORDS, PAD = 258, 257
SIZE = {
    "vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 256, "initializer_range": 0.2,
}  # fmt: skip
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD}
DESCRIPTION = {
    "num_tokens": WORDS, "max_seq_len": 256, "dim": 32, "depth": 2, "heads": 2, "positions": "rotary",
    "decoder": {}, "wrapper": {},
}  # fmt: skip
# name: (prompts, answers of each, longest prompt, positions before and after, rows of logits before and after)
SHAPES = {"no prompt shared": (16, 1, 40, 896, 585, 880, 234), "prompts shared": (4, 8, 120, 3936, 587, 3904, 317)}


def network(name):
    torch.manual_seed(0)
    if name == "llama":
        made = LlamaForCausalLM(LlamaConfig(**SIZE, num_key_value_heads=2, **ENDS)).eval()
        for part in list(made.modules()):  # its own norm rounds to float32, whatever the weights are
            for place, norm in list(part.named_children()):
                if isinstance(norm, LlamaRMSNorm):
                    setattr(part, place, torch.nn.RMSNorm(len(norm.weight), norm.variance_epsilon))
        return made
    if name == "neox":
        return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZE, **ENDS)).eval()
    small = {"vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
    return GPT2LMHeadModel(GPT2Config(**small, initializer_range=0.2, **ENDS)).eval()


def valued(base, kind=AutoModelForCausalLMWithValueHead):
    torch.manual_seed(1)
    return kind(base, v_head_init_strategy="normal", summary_dropout_prob=0.0).eval()


def x_model(**changes):
    described = DESCRIPTION | changes
    built = XTransformersModel.random(described, seed=0).network.eval()
    return XTransformersWithValueHead(built, v_head_init_strategy="normal", description=described)


def samples(prompts, answers, longest, seed=1, longest_answer=24):
    """Queries, responses and masks with holes, as of text that a tool wrote."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(seed)
    queries, responses, masks = [], [], []
    for _ in range(prompts):
        query = torch.randint(3, PAD, (int(torch.randint(2, longest, (), generator=draw)),), generator=draw)
        for _ in range(answers):
            length = int(torch.randint(1, longest_answer, (), generator=draw))
            queries.append(query)
            responses.append(torch.randint(3, PAD, (length,), generator=draw))
            mask = torch.rand(length, generator=draw) < 0.9
            mask[-1] = True
            masks.append(mask.long())
    return queries, responses, masks


def counted(model):
    """The numbers of positions computed and of rows that the head read, which grow with each pass."""
    found = {"positions": 0, "rows": 0}
    base = model.pretrained_model

    def body(module, args, kwargs):
        found["positions"] += kwargs["input_ids"].numel()

    def head(module, args):
        found["rows"] += args[0].shape[:-1].numel()

    base.base_model.register_forward_pre_hook(body, with_kwargs=True)
    base.get_output_embeddings().register_forward_pre_hook(head)
    return found


def apart(found, wanted):
    """The largest difference, relative to the size of the numbers."""
    return float((found - wanted).norm() / wanted.norm())


def gradients(model, out, inside):
    """Of a loss of log-probs and values."""
    draw = torch.Generator().manual_seed(2)
    gain, wanted = torch.randn(2, int(inside.sum()), generator=draw)
    model.zero_grad()
    loss = -(gain * out.logprobs[inside]).sum() + 0.1 * (out.values[inside] - wanted).square().sum()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def agree(padded, flat, given, side, limit, temperature=1.0):
    """Compare the two passes and their gradients; returns how many positions are in the padded batch."""
    queries, responses, masks = given
    ways = FlatForward(Accelerator(cpu=True))
    assert ways.why_padded(flat) is None
    inputs = with_positions(padded, decoder_inputs(queries, responses, PAD, side))
    mask = response_mask(inputs, queries, responses, masks)
    inside = mask.bool()
    wanted = forward(padded, inputs, temperature)
    count = counted(flat) if isinstance(flat, AutoModelForCausalLMWithValueHead) else {}
    found = ways.forward(flat, token_sequences(queries, responses, masks), mask, temperature)
    for one, other in ((found.logprobs, wanted.logprobs), (found.values, wanted.values)):
        assert one.shape == other.shape
        assert apart(one[inside], other[inside]) < limit
        assert not one[~inside].any()
    assert apart(found.entropy[inside], entropy_from_logits(wanted.logits[inside])) < limit
    theirs, ours = gradients(padded, wanted, inside), gradients(flat, found, inside)
    assert theirs.keys() == ours.keys()
    largest = max(float(gradient.norm()) for gradient in theirs.values())
    for name, gradient in theirs.items():  # a key bias has a gradient of 0 but for rounding
        assert float((ours[name] - gradient).norm()) < limit * max(float(gradient.norm()), 1e-3 * largest), name
    return inputs["input_ids"], count


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["llama", "gpt2", "neox"])
def test_both_passes_agree(name, shape, side, dtype):
    """Log-probs, values, entropy, gradients; and what is computed for them, against what padded inputs take."""
    prompts, answers, longest, positions, fewer, rows, few = SHAPES[shape]
    padded = valued(network(name)).to(dtype)
    flat = copy.deepcopy(padded)
    ids, count = agree(padded, flat, samples(prompts, answers, longest), side, 1e-9 if dtype == torch.float64 else 5e-6)
    assert (ids.numel(), ids.shape[0] * (ids.shape[1] - 1)) == (positions, rows)
    assert count == {"positions": fewer, "rows": few}


@pytest.mark.parametrize("name", ["llama", "neox"])
def test_a_temperature_divides_logits(name):
    padded = valued(network(name)).double()
    agree(padded, copy.deepcopy(padded), samples(2, 3, 20), "left", 1e-9, temperature=0.7)


@pytest.mark.parametrize("changes", [{}, {"positions": "absolute", "wrapper": {"tie_embedding": True}}], ids=str)
def test_a_network_of_x_transformers_is_served_where_it_came_with_its_description(changes):
    padded = x_model(**changes).double()
    agree(padded, copy.deepcopy(padded), samples(2, 3, 20), "left", 1e-9, temperature=0.7)


def test_adapters_count():
    torch.manual_seed(0)
    low = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    padded = valued(get_peft_model(network("llama"), low)).double()
    agree(padded, copy.deepcopy(padded), samples(2, 3, 20), "right", 1e-9)


@pytest.mark.parametrize("size", [3, 8])
def test_passes_without_gradients_have_what_padded_ones_have(size):
    """Log-probs and values of queries as well; logits of scored tokens, with 0 elsewhere."""
    padded = valued(network("llama")).double()
    flat = copy.deepcopy(padded)
    queries, responses, masks = samples(3, 3, 20)
    inputs = with_positions(padded, decoder_inputs(queries, responses, PAD, "left"))
    mask = response_mask(inputs, queries, responses, masks)
    ways = FlatForward(Accelerator(cpu=True))
    assert ways.why_padded(flat) is None
    sequences = token_sequences(queries, responses, masks)
    found = ways.forward_in_chunks(flat, sequences, inputs["attention_mask"], mask, size, 0.8, return_logits=True)
    wanted = forward_in_chunks(padded, inputs, size, 0.8, return_logits=True)
    attended = (inputs["attention_mask"][:, 1:] * inputs["attention_mask"][:, :-1]).bool()
    for one, other, inside in zip(found, wanted, (attended, mask.bool(), attended), strict=True):
        torch.testing.assert_close(one[inside], other[inside], rtol=1e-9, atol=1e-9)
        assert not one[~inside].any()


class OwnForward(AutoModelForCausalLMWithValueHead):
    """A model whose pass might be another one, for all that is known of it: it keeps the padded way."""

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


def two_steps(model, side="left", **changes):
    sizes = {"batch_size": 16, "mini_batch_size": 8, "ppo_epochs": 2, "learning_rate": 3e-4}
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4, eps=1e-4)  # above gradients that are all rounding
    tokenizer = tiny.tokenizer(side)
    queries, responses, masks = samples(4, 4, 40, seed=3)
    scores = list(torch.randn(16, generator=torch.Generator().manual_seed(4)))
    trainer = PPOTrainer(PPOConfig(**sizes | changes), model, None, tokenizer, optimizer=optimizer)
    return trainer, [trainer.step(queries, responses, scores, masks) for _ in range(2)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kl_penalty": "full"},
        {"gradient_checkpointing": True},
        {"group_mini_batches": True},
        {"logit_temperature": 0.8},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_two_whole_steps_agree(name, changes):
    """Statistics and weights; the weights have moved."""
    start = valued(network(name)).double()
    trainer, found = two_steps(copy.deepcopy(start), **changes)
    padded, wanted = two_steps(valued(network(name), OwnForward).double(), **changes)
    queries, responses, _ = samples(4, 4, 40, seed=3)
    attended = decoder_inputs(queries, responses, PAD, "left")["attention_mask"]
    behind = (attended[:, 1:] * attended[:, :-1]).numpy()
    for one, other in zip(found, wanted, strict=True):
        for matrix in ("objective/logprobs", "objective/ref_logprobs"):
            other[matrix] = other[matrix] * behind  # at padding they hold anything
        same(one, other, rtol=1e-6, atol=1e-8)
    assert trainer.updates.flat.why_padded(trainer.model) is None
    assert padded.updates.flat.why_padded(padded.model) is not None
    moved = dict(start.named_parameters())
    for (weight, flat), other in zip(trainer.model.named_parameters(), padded.model.parameters(), strict=True):
        assert float((flat - other).norm()) <= 1e-9 * float(other.norm())
        assert (flat - moved[weight]).abs().max() > 1e-5
    network_config = trainer.model.pretrained_model.config
    assert network_config._attn_implementation == padded.model.pretrained_model.config._attn_implementation
    answer = trainer.generate(torch.tensor([3, 4, 5]), do_sample=False, max_new_tokens=4)
    assert answer.tolist() == padded.generate(torch.tensor([3, 4, 5]), do_sample=False, max_new_tokens=4).tolist()


def test_answers_of_a_prompt_stay_together_if_asked_to():
    """Every epoch has an order of its own, in which each prompt's samples stand side by side: less is computed."""
    positions = {}
    for grouped in (False, True):
        model = valued(network("llama"))
        count = counted(model)
        trainer, _ = two_steps(model, group_mini_batches=grouped)
        positions[grouped] = count["positions"]
    queries, responses, _ = samples(4, 4, 40, seed=3)
    orders = [trainer.updates.ordered(trainer_batch(queries, responses)) for _ in range(3)]
    for order in orders:
        assert sorted(order) == list(range(16))
        prompts = [i // 4 for i in order]
        assert sum(a != b for a, b in pairwise(prompts)) == 3
    assert orders[0].tolist() != orders[1].tolist()
    assert positions[True] < 0.9 * positions[False]


def trainer_batch(queries, responses):
    nothing = torch.zeros(0)
    return Batch({}, *[nothing] * 5, token_sequences(queries, responses))


def hooked():
    model = valued(network("llama"))
    model.pretrained_model.lm_head.register_forward_hook(lambda module, given, out: out * 2)
    return model


REASONS = {
    "an encoder-decoder": (lambda: tiny.seq2seq(), "an encoder-decoder has no prompt to share"),
    "a window": (
        lambda: valued(MistralForCausalLM(MistralConfig(**SIZE, num_key_value_heads=2, sliding_window=8, **ENDS))),
        "sliding_window = 8",
    ),
    "a hook": (hooked, "something changes the logits behind the head"),
    "a pass of its own": (lambda: OwnForward(network("llama")), "OwnForward has a forward pass of its own"),
    "no description": (lambda: tiny.x_causal(), "the network came without its description"),
    "an unknown keyword": (
        lambda: x_model(decoder={"shift_tokens": 1}), "shift_tokens among the keywords of x-transformers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REASONS)
def test_models_that_keep_the_padded_pass(name):
    build, reason = REASONS[name]
    assert FlatForward(Accelerator(cpu=True)).why_padded(build()) == reason


def test_a_model_whose_numbers_differ_keeps_the_padded_pass():
    """A network that counts positions from the first token of the row, whatever it is told: found out by numbers."""
    model = valued(network("gpt2"))
    body = model.pretrained_model.transformer

    def shifted(module, args, kwargs):
        ids = args[0] if args else kwargs["input_ids"]
        return args, kwargs | {"position_ids": torch.arange(ids.shape[1])[None].expand_as(ids)}

    body.register_forward_pre_hook(shifted, with_kwargs=True)
    assert "change if prompts are shared" in FlatForward(Accelerator(cpu=True)).why_padded(model)


INPUTS = {
    "as they are": (lambda inputs: inputs, True),
    "without positions": (lambda inputs: {name: inputs[name] for name in ("input_ids", "attention_mask")}, True),
    "other tokens": (lambda inputs: inputs | {"input_ids": inputs["input_ids"] + 1}, False),
    "fewer tokens": (lambda inputs: inputs | {"attention_mask": inputs["attention_mask"].tril(3)}, False),
    "other positions": (lambda inputs: inputs | {"position_ids": inputs["position_ids"] + 1}, False),
    "more": (lambda inputs: inputs | {"token_type_ids": torch.ones_like(inputs["input_ids"])}, False),
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_that_a_subclass_changed_are_padded(name):
    change, answer = INPUTS[name]
    queries, responses, _ = samples(2, 2, 20)
    inputs = with_positions(valued(network("llama")), decoder_inputs(queries, responses, PAD, "right"))
    assert plain(change(inputs), queries, responses) == answer


def test_ranks_agree_on_the_pass():
    """One rank that finds the numbers different makes all ranks keep the padded pass."""
    other_says_no = FlatForward(Accelerator(cpu=True), reduce=lambda votes: votes + 1)
    assert other_says_no.why_padded(valued(network("llama"))) is not None


def test_the_loss_takes_entropy_for_logits():
    generator = torch.Generator().manual_seed(0)
    old, values, vpreds, new, advantages, returns = torch.randn(6, 2, 5, generator=generator)
    logits, mask = torch.randn(2, 5, 7, generator=generator), torch.tensor([[0, 1, 1, 0, 1], [1, 1, 0, 0, 0]])
    wanted = loss_sums(old, values, logits, vpreds, new, mask, advantages, returns)
    entropy = entropy_from_logits(logits).masked_fill(mask == 0, 9)
    found = loss_sums(old, values, None, vpreds, new, mask, advantages, returns, entropy=entropy)
    torch.testing.assert_close(found.numbers, wanted.numbers)


def test_spread_by_hand():
    mask = torch.tensor([[0, 1, 1], [1, 0, 0]])
    assert spread(torch.tensor([1.0, 2.0, 3.0]), mask).tolist() == [[0, 1, 2], [3, 0, 0]]
    rows = spread(torch.tensor([[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]), mask)
    assert rows[..., 1].tolist() == [[0, 4, 5], [6, 0, 0]]
