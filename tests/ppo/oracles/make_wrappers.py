"""What TRL 1.12.0's value-head models answer and save. It runs where TRL is, and imports nothing of this project.

    pip install --no-deps --target /tmp/trl-1.12.0 trl==1.12.0
    export PYTHONPATH=/tmp/trl-1.12.0 HF_HUB_OFFLINE=1 TRL_EXPERIMENTAL_SILENCE=1
    python tests/ppo/oracles/make_wrappers.py fixtures tests/ppo/fixtures     # the folders trl-1.12.0-*
    python tests/ppo/oracles/make_wrappers.py load causal FOLDER OUT.json     # answers of a saved model
    python tests/ppo/oracles/make_wrappers.py save causal FOLDER OUT.json     # saves a new model, and its answers
    python tests/ppo/oracles/make_wrappers.py adapter BASE FOLDER OUT.json    # the same with a new LoRA on BASE

KIND is causal or seq2seq. Made with torch 2.13.0+cpu and transformers 5.23.0.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration
from trl.experimental.ppo import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead

KINDS = {"causal": AutoModelForCausalLMWithValueHead, "seq2seq": AutoModelForSeq2SeqLMWithValueHead}
GPT2 = {
    "vocab_size": 40,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
T5 = {
    "vocab_size": 40,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
INPUTS = {
    "input_ids": [[5, 12, 33, 7, 21, 9], [17, 3, 28, 11, 6, 38]],
    "decoder_input_ids": [[0, 14, 8, 30], [0, 25, 19, 4]],
}


def decided(model, seed=0):
    """Noise on every weight, so that no two answers are nearly alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def numbers(tensor):
    """Nested lists of the shortest decimals that are these float32 numbers."""
    array = tensor.detach().numpy()
    return np.vectorize(lambda number: float(str(number)), otypes=[object])(array).tolist()


def answers(model, kind):
    given = {name: ids for name, ids in INPUTS.items() if kind == "seq2seq" or name == "input_ids"}
    logits, _, values = model.eval()(**{name: torch.tensor(ids) for name, ids in given.items()})
    return {
        "made_with": {name: version(name) for name in ("trl", "transformers", "torch")},
        "inputs": given,
        "logits": numbers(logits),
        "values": numbers(values),
    }


def new(kind):
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(**GPT2)) if kind == "causal" else T5ForConditionalGeneration(T5Config(**T5))
    model = KINDS[kind].from_pretrained(decided(base), v_head_init_strategy="normal")
    return decided(model, seed=1)


def write(path, kind, model):
    Path(path).write_text(json.dumps(answers(model, kind)) + "\n", encoding="utf-8")


def save(kind, folder, out):
    model = new(kind)
    model.save_pretrained(folder)
    write(out, kind, model)


def adapter(base, folder, out):
    from peft import LoraConfig

    lora = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    model = KINDS["causal"].from_pretrained(base, peft_config=lora, v_head_init_strategy="normal")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    Path(folder).mkdir(parents=True)  # it does not make the folder
    model.save_pretrained(folder)
    write(out, "causal", model)


def fixtures(top):
    for kind in KINDS:
        folder = Path(top) / f"trl-1.12.0-{kind}"
        save(kind, str(folder), folder / "answers.json")


def main(verb, *arguments):
    torch.set_num_threads(1)
    if verb == "load":
        kind, folder, out = arguments
        write(out, kind, KINDS[kind].from_pretrained(folder))
    else:
        {"fixtures": fixtures, "save": save, "adapter": adapter}[verb](*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
