"""Language models with a value head: the policy and its value function share one trunk.

    AutoModelForCausalLMWithValueHead     any causal Hugging Face model
    AutoModelForSeq2SeqLMWithValueHead    any encoder-decoder Hugging Face model
    XTransformersWithValueHead            a causal TransformerWrapper of x-transformers
    CausalLMPolicy, Seq2SeqLMPolicy, XTransformersPolicy    the same without a head, for estimators without values
    create_reference_model                the frozen copy that the KL penalty looks back to

Every one of them answers a forward with `(logits, loss, values)`. The names, the folders they save and the arguments
are those of TRL (up to 1.12, the last release that has these classes), so that code and checkpoints move either way.
"""

from ppo.models.adapters import last_token_reward
from ppo.models.causal import AutoModelForCausalLMWithValueHead
from ppo.models.headless import CausalLMPolicy, Seq2SeqLMPolicy, XTransformersPolicy
from ppo.models.reference import create_reference_model
from ppo.models.seq2seq import AutoModelForSeq2SeqLMWithValueHead
from ppo.models.value_head import ValueHead
from ppo.models.wrapper import PreTrainedModelWrapper
from ppo.models.x_transformers import XTransformersWithValueHead

__all__ = [
    "AutoModelForCausalLMWithValueHead",
    "AutoModelForSeq2SeqLMWithValueHead",
    "CausalLMPolicy",
    "PreTrainedModelWrapper",
    "Seq2SeqLMPolicy",
    "ValueHead",
    "XTransformersPolicy",
    "XTransformersWithValueHead",
    "create_reference_model",
    "last_token_reward",
]
