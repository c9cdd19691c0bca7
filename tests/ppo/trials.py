"""What the tests of PPOTrainer share: policies of every kind, batches for them, looks at their weights."""

import numpy as np
import pytest
import torch

from ppo import XTransformersWithValueHead
from tests.ppo import tiny

# Marks: warnings that these trials are meant to give
QUIET = [
    pytest.mark.filterwarnings("ignore:no dataset was given"),
    pytest.mark.filterwarnings("ignore:responses are sampled with do_sample = False"),
    pytest.mark.filterwarnings("ignore:the KL to the reference is"),
    pytest.mark.filterwarnings("ignore:`(is_gradient_checkpointing|gradient_checkpointing_enable)` is deprecated"),
]
KINDS = ["gpt2", "t5", "x"]
GREEDY = {"do_sample": False, "max_new_tokens": 5}
NO_END = {"eos_token_id": tiny.VOCABULARY + 75}  # a token that is never generated


def policy(kind, seed=0):
    return {"gpt2": tiny.causal, "t5": tiny.seq2seq, "x": tiny.x_causal}[kind](seed)


def trainer(kind="gpt2", optimizer=None, **changes):
    return tiny.trainer(policy(kind), policy(kind, 1), optimizer, **changes)


def batch(kind="gpt2", **options):
    return tiny.batch(start=tiny.PAD if kind == "t5" else None, **options)


def sgd(lr=0.1, seed=0, **changes):
    """A trainer whose updates are the learning rate times the gradient."""
    model = tiny.causal(seed)
    return tiny.trainer(model, tiny.causal(1), torch.optim.SGD(model.parameters(), lr=lr), **changes)


def flat(model):
    return torch.cat([value.detach().double().flatten() for value in model.parameters()])


def weights(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def changed(model, before):
    return {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}


def counted(found):
    """A list that grows by one at each call of the optimizer's step."""
    calls = []
    found.bare_optimizer.register_step_post_hook(lambda *_: calls.append(1))
    return calls


def same(found, wanted, **close):
    """Two steps' statistics, but for the times."""
    assert {*found} == {*wanted}
    for name, value in wanted.items():
        if not name.startswith("time/"):
            np.testing.assert_allclose(found[name], value, err_msg=name, **close)


def everything(found):
    """All that a step may change."""
    order = found.updates.order.get_state()
    return {
        "weights": flat(found.model).tolist(),
        "kl": found.kl_ctl.value,
        "moments": found.running.state_dict(),
        "order": (order[1].tolist(), order[2:]),
        "step": found.current_step,
        "optimizer": len(found.optimizer.state_dict()["state"]),
    }


def plain(model, query, response, temperature=1.0):
    """Log-probs and values of one response's tokens, from the bare network, without padding; one token at a time."""
    base, head = model.pretrained_model, model.v_head.summary
    with torch.no_grad():
        if model.is_encoder_decoder:
            out = base(input_ids=query[None], decoder_input_ids=response[None], output_hidden_states=True)
            logits, hidden, tokens, first = out.logits[0], out.decoder_hidden_states[-1][0], response, 1
        else:
            tokens, first = torch.cat([query, response]), len(query)
            if isinstance(model, XTransformersWithValueHead):
                logits, hidden = (x[0] for x in base(tokens[None], return_logits_and_embeddings=True))
            else:
                out = base(input_ids=tokens[None], output_hidden_states=True)
                logits, hidden = out.logits[0], out.hidden_states[-1][0]
        logprobs = [logits[t - 1].div(temperature).log_softmax(-1)[tokens[t]] for t in range(first, len(tokens))]
        values = [head(hidden[t - 1])[0] for t in range(first, len(tokens))]
    return torch.stack(logprobs), torch.stack(values)


class Numbers(torch.utils.data.Dataset):
    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {"input_ids": torch.full((3,), index)}
