"""Numbers of old TRL releases, for the tests of the PPO trainer. Run by hand; the tests read only what it wrote.

    python tests/ppo/oracles/make_trainer.py OUT_FOLDER

TRL is never installed into the project's environment: each release lies in a folder of its own, first on the path.
The release found there decides which files are written, and 0.11.4 comes first, for the others read its weights:

    for release in 0.11.4 0.9.6; do
        pip install --no-deps --target /tmp/oracles/trl-$release trl==$release \
            tyro==1.0.17 shtab docstring-parser rich typeguard markdown-it-py mdurl pygments
    done
    pip install --no-deps --target /tmp/oracles/trl-0.7.4 trl==0.7.4 transformers==4.38.2 tokenizers==0.15.2 \
        huggingface_hub==0.23.4 accelerate==0.30.1 datasets==2.19.2 peft==0.10.0 \
        tyro==0.8.14 shtab docstring-parser rich typeguard markdown-it-py mdurl pygments pyarrow-hotfix
    export HF_HUB_OFFLINE=1
    for release in 0.11.4 0.9.6 0.7.4; do
        PYTHONPATH=/tmp/oracles/trl-$release python tests/ppo/oracles/make_trainer.py OUT_FOLDER
    done

Everything is on the CPU with one thread, the models are tiny with fixed weights, and nothing is downloaded.
A float32 is written with the fewest decimals that give it back. NaN and Infinity stand as Python's json writes them.
"""

from __future__ import annotations

import json
import platform
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
import transformers
import trl
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from datasets import Dataset
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)
from trl import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead, PPOConfig, PPOTrainer, core
from trl.trainer.utils import AdaptiveKLController, FixedKLController, RunningMoments, get_global_statistics

VOCABULARY = 64
PAD = 0
EOS = 1
ROWS = 3
WIDTH = 8
WORDS = 7  # logits of the function fixtures are this wide

GPT2 = {
    "vocab_size": VOCABULARY,
    "n_positions": 64,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 2,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "bos_token_id": EOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_heads": 2,
    "dropout_rate": 0.0,
    "decoder_start_token_id": PAD,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}
PPO = {
    "seed": 7,
    "batch_size": 4,
    "mini_batch_size": 2,
    "ppo_epochs": 2,
    "learning_rate": 1e-3,
    "target": 1.0,
    "horizon": 50.0,
}

# two batches: the token counts of (queries, responses), and of responses which are equally long
COUNTS = [([3, 5, 2, 4], [4, 2, 6, 3]), ([4, 2, 6, 3], [5, 3, 2, 4])]
EQUAL_COUNTS = [([3, 5, 2, 4], [4, 4, 4, 4]), ([4, 2, 6, 3], [4, 4, 4, 4])]


# writing


def numbers(value: Any) -> Any:
    """Tensors, arrays and scalars as plain numbers; a float32 as the shortest decimal that gives it back."""
    if isinstance(value, dict):
        return {str(key): numbers(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [numbers(entry) for entry in value]
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return [numbers(entry) for entry in value] if value.ndim else numbers(value[()])
    if isinstance(value, np.float32):
        return float(str(value))
    if isinstance(value, np.generic):
        return value.item()
    return value


def versions() -> dict[str, str]:
    found = {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    found |= {"accelerate": accelerate.__version__, "numpy": np.__version__, "python": platform.python_version()}
    return found


def write(path: Path, content: dict[str, Any]) -> None:
    """One fixture file, with the versions that made it; a line for every entry of its top two levels."""
    content = numbers({"versions": versions()} | content)
    lines = []
    for key, value in content.items():
        if isinstance(value, list) and value and isinstance(value[0], dict | list):
            inner = ",\n".join("  " + json.dumps(entry) for entry in value)
            lines.append(f" {json.dumps(key)}: [\n{inner}\n ]")
        elif isinstance(value, dict) and key != "versions":
            inner = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in value.items())
            lines.append(f" {json.dumps(key)}: {{\n{inner}\n }}")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{path.name}: {path.stat().st_size} bytes")


def outcome(call: Callable[[], Any]) -> dict[str, Any]:
    """What a call gave, or the type and the first line of what it raised."""
    try:
        return {"result": call()}
    except Exception as error:
        return {"exception": type(error).__name__, "message": str(error).split("\n")[0]}


# the tiny models


def fixed_weights(names: dict[str, torch.Size], seed: int) -> dict[str, torch.Tensor]:
    """Weights wide enough that the logits differ; norms around 1, biases not 0."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in names.items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 1 and name.endswith("weight"):
            weights[name] = 1 + 0.1 * noise
        elif len(shape) == 1:
            weights[name] = 0.05 * noise
        else:
            weights[name] = 0.15 * noise
    return weights


def perturbed(weights: dict[str, torch.Tensor], scale: float, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: value + scale * torch.randn(value.shape, generator=generator) for name, value in weights.items()}


def parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters under the names of the plain model, with v_head.summary.*; a tied head is there once."""
    return {name.removeprefix("pretrained_model."): value for name, value in model.named_parameters()}


def filled(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> Any:
    """The model with these weights in place of its own."""
    with torch.no_grad():
        for name, value in parameters(model).items():
            value.copy_(weights[name])
    return model


def gpt2(weights: dict[str, torch.Tensor], **changes: Any) -> Any:
    """The tiny GPT-2 with its value head; nothing drops out."""
    base = GPT2LMHeadModel(GPT2Config(**(GPT2 | changes)))
    return filled(AutoModelForCausalLMWithValueHead.from_pretrained(base, summary_dropout_prob=0.0), weights)


def t5(weights: dict[str, torch.Tensor]) -> Any:
    base = T5ForConditionalGeneration(T5Config(**T5))
    return filled(AutoModelForSeq2SeqLMWithValueHead.from_pretrained(base, summary_dropout_prob=0.0), weights)


def shapes(model: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in parameters(model).items()}


def make_weights(folder: Path) -> None:
    """policy, reference and seq2seq: the weights which every fixture starts from."""
    plain = AutoModelForCausalLMWithValueHead.from_pretrained(GPT2LMHeadModel(GPT2Config(**GPT2)))
    policy = fixed_weights(shapes(plain), seed=1)
    save_file(policy, folder / "policy.safetensors")
    save_file(perturbed(policy, 0.04, seed=2), folder / "reference.safetensors")
    plain = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(T5ForConditionalGeneration(T5Config(**T5)))
    save_file(fixed_weights(shapes(plain), seed=3), folder / "seq2seq.safetensors")


def tokenizer(padding_side: str = "right", eos: int = EOS) -> PreTrainedTokenizerFast:
    """A word for every id: 'w7' is 7."""
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w2"))
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="w2", pad_token=f"w{PAD}", eos_token=f"w{eos}", padding_side=padding_side
    )


# trainers and their batches


def trainer_of(
    model: Any, reference: Any, optimizer: Any = None, side: str = "right", eos: int = EOS, **options: Any
) -> PPOTrainer:
    """A trainer on a fresh accelerator: accelerate keeps its state for the whole process."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    config = PPOConfig(**options)
    return PPOTrainer(config, model, reference, tokenizer(side, eos), optimizer=optimizer)


def batch_of(counts: tuple[list[int], list[int]], seed: int) -> dict[str, list[torch.Tensor]]:
    """Random queries and responses of these lengths, every other response ended by eos, and float32 scores."""
    draw = np.random.RandomState(seed)
    queries = [torch.from_numpy(draw.randint(3, VOCABULARY, count)) for count in counts[0]]
    responses = [torch.from_numpy(draw.randint(3, VOCABULARY, count)) for count in counts[1]]
    for response in responses[::2]:
        if len(response) > 1:
            response[-1] = EOS
    scores = [torch.tensor(score, dtype=torch.float32) for score in draw.randn(len(queries)).round(3)]
    return {"queries": queries, "responses": responses, "scores": scores}


def batches_of(counts: list[tuple[list[int], list[int]]]) -> list[dict[str, list[torch.Tensor]]]:
    return [batch_of(lengths, seed=11 + i) for i, lengths in enumerate(counts)]


def run_steps(trainer: PPOTrainer, batches: list[dict[str, list[torch.Tensor]]]) -> dict[str, Any]:
    """A `step` for each batch. All permutations come from one RandomState(config.seed), and are recorded."""
    stream = np.random.RandomState(trainer.config.seed)
    drawn = []

    def permutation(count: int) -> np.ndarray:
        drawn.append(stream.permutation(count))
        return drawn[-1]

    original, np.random.permutation = np.random.permutation, permutation
    stats, coefficients = [], []
    for batch in batches:
        found = trainer.step(batch["queries"], batch["responses"], batch["scores"], batch.get("response_masks"))
        stats.append({key: value for key, value in found.items() if not key.startswith("time/")})
        coefficients.append(float(trainer.kl_ctl.value))
    np.random.permutation = original
    return {"permutations": drawn, "stats": stats, "kl_coef": coefficients}


def inputs_of(batches: list[dict[str, list[torch.Tensor]]]) -> dict[str, Any]:
    """The batches as a step fixture stores them: one entry per step for each of queries, responses, scores, ..."""
    return {key: [batch[key] for batch in batches] for key in batches[0]}


def absolute_sums(model: torch.nn.Module) -> dict[str, float]:
    return {name: value.detach().double().abs().sum().item() for name, value in parameters(model).items()}


class Updates:
    """What each call of the inner optimizer did to the weights: the norm and the greatest entry of their change."""

    def __init__(self, model: torch.nn.Module, optimizer: Any) -> None:
        self.model = model
        self.norms: list[float] = []
        self.greatest: list[float] = []
        self.before = self.now()
        optimizer.register_step_post_hook(self.record)

    def now(self) -> torch.Tensor:
        return torch.cat([value.detach().double().flatten() for value in parameters(self.model).values()])

    def record(self, *_: Any) -> None:
        now = self.now()
        self.norms.append((now - self.before).norm().item())
        self.greatest.append((now - self.before).abs().max().item())
        self.before = now


# a. functions


def random_mask(draw: np.random.RandomState) -> torch.Tensor:
    """Any positions, at least two of them."""
    mask = (draw.rand(ROWS, WIDTH) < 0.6).astype(np.int64)
    mask[0, :2] = 1
    return torch.from_numpy(mask)


def response_mask(draw: np.random.RandomState) -> torch.Tensor:
    """In every row one run of at least two positions, with a prompt before it and mostly padding after it."""
    mask = torch.zeros(ROWS, WIDTH, dtype=torch.int64)
    for row in mask:
        start = draw.randint(0, 4)
        row[start : start + draw.randint(2, WIDTH - start + 1)] = 1
    return mask


def holed_mask(draw: np.random.RandomState) -> torch.Tensor:
    """Runs from 1 to 6, each with a hole of one or two positions inside."""
    mask = torch.zeros(ROWS, WIDTH, dtype=torch.int64)
    for row in mask:
        row[1:7] = 1
        hole = draw.randint(2, 5)
        row[hole : hole + draw.randint(1, 3)] = 0
    return mask


class Methods:
    """The trainer's methods that need only its configuration and its KL coefficient."""

    _kl_penalty = PPOTrainer._kl_penalty
    compute_rewards = PPOTrainer.compute_rewards
    compute_advantages = PPOTrainer.compute_advantages
    loss = PPOTrainer.loss

    def __init__(self, kl_coef: float = 0.2, **options: Any) -> None:
        self.config = PPOConfig(**options)
        self.kl_ctl = FixedKLController(kl_coef)


def case(inputs: dict[str, Any], outputs: Any, **labels: Any) -> dict[str, Any]:
    return labels | {"inputs": inputs, "outputs": outputs}


def controllers() -> list[dict[str, Any]]:
    settings = [
        ("adaptive", 0.2, 6.0, 10000.0, [12.0, 6.3, 0.0, -5.0], [256] * 4),
        ("adaptive", 0.05, 1.0, 50.0, [0.8, 1.1, 1.25, 3.0, 0.1, 0.95], [4, 4, 8, 16, 2, 50]),
        ("adaptive", 1.5, 0.3, 700.0, np.random.RandomState(0).randn(12).round(4).tolist(), [64] * 12),
        ("fixed", 0.2, None, None, [12.0, 6.3, 0.0, -5.0], [256] * 4),
    ]
    found = []
    for kind, start, target, horizon, currents, counts in settings:
        controller = FixedKLController(start) if kind == "fixed" else AdaptiveKLController(start, target, horizon)
        values = []
        for current, count in zip(currents, counts, strict=True):
            controller.update(current, count)
            values.append(float(controller.value))
        inputs = {"start": start, "target": target, "horizon": horizon, "currents": currents, "counts": counts}
        found.append({"kind": kind, "inputs": inputs, "outputs": {"values": values}})
    return found


def statistics_functions(draw: np.random.RandomState, dtype: torch.dtype, into: dict[str, list[Any]]) -> None:
    """One draw of the small tensor functions."""
    label = {"dtype": str(dtype).removeprefix("torch.")}
    values = torch.from_numpy(draw.randn(ROWS, WIDTH) * 2 + 0.5).to(dtype)
    mask = random_mask(draw)
    inputs = {"values": values, "mask": mask}
    into["masked_mean"].append(case(inputs, core.masked_mean(values, mask), **label, axis=None))
    into["masked_mean"].append(case(inputs, core.masked_mean(values, mask, axis=0), **label, axis=0))
    for unbiased in (True, False):
        found = core.masked_var(values, mask, unbiased=unbiased)
        into["masked_var"].append(case(inputs, found, **label, unbiased=unbiased))
    for shift in (True, False):
        found = core.masked_whiten(values, mask, shift_mean=shift)
        into["masked_whiten"].append(case(inputs, found, **label, shift_mean=shift))
        found = core.whiten(values, shift_mean=shift)
        into["whiten"].append(case({"values": values}, found, **label, shift_mean=shift))
    logits = torch.from_numpy(draw.randn(ROWS, WIDTH, WORDS) * 2).to(dtype)
    labels = torch.from_numpy(draw.randint(0, WORDS, (ROWS, WIDTH)))
    into["entropy_from_logits"].append(case({"logits": logits}, core.entropy_from_logits(logits), **label))
    found = core.logprobs_from_logits(logits, labels)
    into["logprobs_from_logits"].append(case({"logits": logits, "labels": labels}, found, **label))
    low, high = values - 0.4, values + 0.3
    x = values + torch.from_numpy(draw.randn(ROWS, WIDTH)).to(dtype)
    found = core.clip_by_value(x, low, high)
    into["clip_by_value"].append(case({"x": x, "low": low, "high": high}, found, **label))


def reward_functions(draw: np.random.RandomState, dtype: torch.dtype, into: dict[str, list[Any]]) -> None:
    """One draw of the KL estimators, the rewards and the advantages."""
    label = {"dtype": str(dtype).removeprefix("torch.")}
    mask = response_mask(draw)
    scores = torch.from_numpy(draw.randn(ROWS)).to(dtype)
    rows = [torch.from_numpy(draw.randn(ROWS, WIDTH, WORDS)).to(dtype).log_softmax(-1) for _ in range(2)]
    for penalty in ("kl", "abs", "mse", "full"):
        full = penalty == "full"
        logprobs, ref_logprobs = (row if full else row[:, :, 0].contiguous() for row in rows)
        methods = Methods(kl_coef=0.15, kl_penalty=penalty)
        inputs = {"logprobs": logprobs, "ref_logprobs": ref_logprobs}
        into["kl_penalty"].append(case(inputs, methods._kl_penalty(logprobs, ref_logprobs), **label, penalty=penalty))
        found = methods.compute_rewards(scores, logprobs, ref_logprobs, mask)
        inputs = inputs | {"scores": scores, "mask": mask, "kl_coef": 0.15}
        outputs = dict(zip(("rewards", "non_score_rewards", "kl"), found, strict=True))
        into["compute_rewards"].append(case(inputs, outputs, **label, penalty=penalty))

    values = torch.from_numpy(draw.randn(ROWS, WIDTH)).to(dtype)
    rewards = torch.from_numpy(draw.randn(ROWS, WIDTH)).to(dtype)
    settings = [
        (mask, 1.0, 0.95, False, None),
        (mask, 0.9, 0.8, False, None),
        (torch.ones_like(mask), 1.0, 0.95, True, None),
        (holed_mask(draw), 1.0, 0.95, False, "holes_are_states_of_value_zero"),
        (mask, 1.0, 0.95, True, "whitened_rewards_reach_padding"),
    ]
    for mask, gamma, lam, whitened, divergence in settings:
        methods = Methods(gamma=gamma, lam=lam, whiten_rewards=whitened)
        found = methods.compute_advantages(values, rewards, mask)
        options = {"gamma": gamma, "lam": lam, "whiten_rewards": whitened}
        outputs = dict(zip(("values", "advantages", "returns"), found, strict=True))
        inputs = {"values": values, "rewards": rewards, "mask": mask}
        into["compute_advantages"].append(case(inputs, outputs, **label, options=options, divergence=divergence))


def loss_functions(draw: np.random.RandomState, dtype: torch.dtype, into: dict[str, list[Any]]) -> None:
    """One draw of the loss, with its statistics and its gradients, for usual inputs and for ratios beyond the guard."""
    label = {"dtype": str(dtype).removeprefix("torch.")}
    defaults = {"cliprange": 0.2, "cliprange_value": 0.2, "vf_coef": 0.1, "ratio_threshold": 10.0}
    others = {"cliprange": 0.05, "cliprange_value": 0.5, "vf_coef": 0.7, "ratio_threshold": 10.0}
    for name, options, shift in (("usual", defaults, 0.0), ("other_options", others, 0.0), ("guard", defaults, 3.5)):
        mask = response_mask(draw)
        logits = torch.from_numpy(draw.randn(ROWS, WIDTH, WORDS)).to(dtype)
        small = [torch.from_numpy(draw.randn(ROWS, WIDTH)).to(dtype) for _ in range(6)]
        old_logprobs = -small[0].abs() - 0.5
        logprobs = (old_logprobs + 0.2 * small[1] + shift).requires_grad_()
        values, vpreds = small[2], (small[2] + 0.3 * small[3]).requires_grad_()
        advantages, returns = small[4], small[5]
        found = Methods(**options).loss(old_logprobs, values, logits, vpreds, logprobs, mask, advantages, returns)
        gradients = torch.autograd.grad(found[0] + found[1], [logprobs, vpreds])
        inputs = {"old_logprobs": old_logprobs, "values": values, "logits": logits, "vpreds": vpreds}
        inputs |= {"logprobs": logprobs, "mask": mask, "advantages": advantages, "returns": returns}
        outputs = {"policy_loss": found[0], "value_loss": found[1], "stats": found[2]}
        outputs |= {"logprobs_gradient": gradients[0], "vpreds_gradient": gradients[1]}
        into["loss"].append(case(inputs, outputs, **label, name=name, options=options))


def moments_and_statistics() -> dict[str, list[Any]]:
    """RunningMoments over sequences of batches and get_global_statistics, of the release at hand."""
    accelerator = Accelerator()
    draw = np.random.RandomState(5)
    found: dict[str, list[Any]] = {"running_moments": [], "get_global_statistics": []}
    sequences = [
        [torch.tensor(batch) for batch in ([1.0, 2.0, 3.0], [10.0, 20.0], [5.0])],
        [torch.from_numpy(draw.randn(4).astype(np.float32)) for _ in range(5)],
        [torch.from_numpy((100 + 3 * draw.randn(3)).astype(np.float32)) for _ in range(4)],
        [torch.tensor([2.5]), torch.tensor([1.0, 4.0])],
    ]
    for batches in sequences:
        moments = RunningMoments(accelerator)
        trajectory = []
        for batch in batches:
            returned = moments.update(batch)
            state = {name: getattr(moments, name) for name in ("mean", "std", "var", "count")}
            trajectory.append({name: torch.as_tensor(x).item() for name, x in state.items()} | {"returned": returned})
        single = "first_batch_of_one" if len(batches[0]) == 1 else None
        found["running_moments"].append(case({"batches": batches}, trajectory, divergence=single))
    for i in range(4):
        xs = torch.from_numpy(draw.randn(ROWS, WIDTH).astype(np.float32))
        mask = random_mask(draw)
        if i == 0:
            xs, mask = torch.tensor([1.0, 2.0, 3.0, 100.0]), torch.tensor([1, 1, 1, 0])
        for given in (None, mask):
            outputs = [float(x) for x in get_global_statistics(accelerator, xs, mask=given)]
            outputs = dict(zip(("mean", "variance", "count"), outputs, strict=True))
            divergence = None if given is None else "mask_ignored_by_the_sum"
            found["get_global_statistics"].append(case({"xs": xs, "mask": given}, outputs, divergence=divergence))
    return found


def write_functions(folder: Path) -> None:
    names = "masked_mean masked_var masked_whiten whiten entropy_from_logits logprobs_from_logits clip_by_value"
    names += " kl_penalty compute_rewards compute_advantages loss"
    found: dict[str, list[Any]] = {"controllers": controllers()} | {name: [] for name in names.split()}
    for dtype in (torch.float32, torch.float64):
        for seed in range(3):
            draw = np.random.RandomState(100 + seed)
            statistics_functions(draw, dtype, found)
            reward_functions(draw, dtype, found)
            loss_functions(draw, dtype, found)
    write(folder / "functions.json", found | moments_and_statistics())


# b. whole steps, and the forward pass


def step_case(
    folder: Path, name: str, counts: Any = None, masks: bool = False, sgd: bool = False, **options: Any
) -> None:
    """Two steps with these options, from the fixed weights."""
    model = gpt2(load_file(folder / "policy.safetensors"))
    reference = gpt2(load_file(folder / "reference.safetensors"))
    config = PPO | options
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1) if sgd else None
    trainer = trainer_of(model, reference, optimizer, **config)
    batches = batches_of(counts or COUNTS)
    if masks:  # the last token of every response longer than two is left out
        for batch in batches:
            batch["response_masks"] = [torch.ones_like(response) for response in batch["responses"]]
            for mask in batch["response_masks"]:
                mask[2:][-1:] = 0
    found = run_steps(trainer, batches)
    if name == "sgd":
        weights: dict[str, Any] = {"file": "step_sgd_weights.safetensors"}
        save_file({key: value.detach() for key, value in parameters(model).items()}, folder / weights["file"])
    else:
        weights = {"abs_sums": absolute_sums(model)}
    content = {"config": config, "optimizer": {"name": "SGD", "lr": 0.1} if sgd else {"name": "Adam"}}
    content |= {"start": {"policy": "policy.safetensors", "reference": "reference.safetensors"}}
    content |= inputs_of(batches) | found | {"weights": weights, "model_config": GPT2}
    write(folder / f"step_{name}.json", content)


def write_steps(folder: Path) -> None:
    for penalty in ("kl", "abs", "mse", "full"):
        step_case(folder, penalty, kl_penalty=penalty)
    step_case(folder, "fixed", adap_kl_ctrl=False, init_kl_coef=0.3)
    step_case(folder, "score_clip", score_clip=0.5)
    step_case(folder, "accumulation", EQUAL_COUNTS, mini_batch_size=1, gradient_accumulation_steps=2)
    step_case(folder, "sgd", sgd=True)
    options = {"vf_coef": 0.5, "cliprange": 0.02, "cliprange_value": 0.03, "gamma": 0.95, "lam": 0.9}
    step_case(folder, "options", **options)
    step_case(folder, "early_stopping_idle", early_stopping=True, target_kl=100.0)
    step_case(folder, "response_masks", masks=True, sgd=True)


def write_scaled_steps(folder: Path) -> None:
    step_case(folder, "scaling", use_score_scaling=True)
    step_case(folder, "scaling_norm", use_score_scaling=True, use_score_norm=True)
    step_case(folder, "scaling_norm_clip", use_score_scaling=True, use_score_norm=True, score_clip=0.8)


def forward_of(trainer: PPOTrainer, batch: Any, masks: Any = None, logits: bool = False) -> dict[str, Any]:
    """The model's inputs and what `batched_forward_pass` makes of them."""
    queries, responses = batch["queries"], batch["responses"]
    inputs = dict(trainer.prepare_model_inputs(queries, responses))
    with torch.no_grad():
        found = trainer.batched_forward_pass(
            trainer.model, queries, responses, inputs, return_logits=logits, response_masks=masks
        )
    named = dict(zip(("logprobs", "logits", "values", "masks"), found, strict=True))
    return {"model_inputs": inputs, "outputs": {key: value for key, value in named.items() if value is not None}}


def write_forward(folder: Path) -> None:
    batch = batch_of(COUNTS[0], seed=11)
    masks = [torch.ones_like(response) for response in batch["responses"]]
    masks[0][1] = 0
    masks[2][2:4] = 0
    masks[3][-1] = 0
    cases: dict[str, Any] = {}
    settings = [("right_padding", "right", None), ("right_padding_response_masks", "right", masks)]
    settings += [("left_padding", "left", None)]
    for name, side, given in settings:
        model = gpt2(load_file(folder / "policy.safetensors"))
        trainer = trainer_of(model, gpt2(load_file(folder / "reference.safetensors")), side=side, **PPO)
        found = forward_of(trainer, batch, given, logits=True)
        logits = found["outputs"].pop("logits")
        if name == "right_padding":
            save_file({"logits": logits.contiguous()}, folder / "forward_logits.safetensors")
            found["logits"] = {"file": "forward_logits.safetensors", "key": "logits"}
        divergence = "left_padding_shifts_absolute_positions" if side == "left" else None
        inputs = {"queries": batch["queries"], "responses": batch["responses"], "response_masks": given}
        cases[name] = {"padding_side": side, "divergence": divergence, "inputs": inputs} | found
    start = {"policy": "policy.safetensors"}
    write(folder / "forward.json", {"config": PPO, "model_config": GPT2, "start": start, "cases": cases})


# c. where the release is known to be wrong


def whitened_rewards() -> dict[str, Any]:
    values = torch.tensor([[0.1, 0.2, 0.3, 0.0, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]])
    rewards = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.5]])
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    inputs = {"values": values, "rewards": rewards, "mask": mask}
    options = {"gamma": 1.0, "lam": 0.95, "whiten_rewards": True}
    found = Methods(**options).compute_advantages(values, rewards, mask)
    return case(inputs, dict(zip(("values", "advantages", "returns"), found, strict=True)), options=options)


def holes() -> dict[str, Any]:
    values = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]])
    rewards = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, 1.0]])
    mask = torch.tensor([[1, 1, 0, 0, 1, 1]])
    inputs = {"values": values, "rewards": rewards, "mask": mask}
    options = {"gamma": 1.0, "lam": 0.95, "whiten_rewards": False}
    found = Methods(**options).compute_advantages(values, rewards, mask)
    return case(inputs, dict(zip(("values", "advantages", "returns"), found, strict=True)), options=options)


class Divergences:
    """One method per known divergence that needs a trainer; each gives inputs and outputs."""

    def __init__(self, folder: Path) -> None:
        self.policy = load_file(folder / "policy.safetensors")
        self.reference = load_file(folder / "reference.safetensors")
        self.seq2seq = load_file(folder / "seq2seq.safetensors")
        self.batches = batches_of(COUNTS)

    def trainer(self, sgd: bool = False, **options: Any) -> tuple[PPOTrainer, Updates]:
        model = gpt2(self.policy)
        kind = torch.optim.SGD if sgd else torch.optim.Adam
        optimizer = kind(model.parameters(), lr=0.1 if sgd else options.get("learning_rate", PPO["learning_rate"]))
        trainer = trainer_of(model, gpt2(self.reference), optimizer, **(PPO | options))
        return trainer, Updates(model, optimizer)

    def clipping(self) -> dict[str, Any]:
        options = {"max_grad_norm": 1e-3}
        trainer, updates = self.trainer(sgd=True, **options)
        run_steps(trainer, self.batches)
        outputs = {"update_norms": updates.norms, "abs_sums": absolute_sums(trainer.model)}
        return case(inputs_of(self.batches), outputs, config=PPO | options, optimizer={"name": "SGD", "lr": 0.1})

    def guard(self) -> dict[str, Any]:
        trainer, updates = self.trainer()
        run_steps(trainer, self.batches[:1])
        usual = len(updates.norms)
        trainer.config.ratio_threshold = 0.0
        stats = run_steps(trainer, self.batches[1:])["stats"][0]
        outputs = {"guarded_updates": len(updates.norms) - usual, "greatest_changes": updates.greatest[usual:]}
        outputs |= {"losses": {key: stats[key] for key in stats if key.startswith("ppo/loss/")}}
        about = "the second step runs with ratio_threshold 0, so every mini-batch is beyond the guard"
        return case(inputs_of(self.batches), outputs, config=PPO, optimizer={"name": "Adam"}, about=about)

    def left_padding(self) -> dict[str, Any]:
        found = {}
        for side in ("left", "right"):
            trainer = trainer_of(gpt2(self.policy), gpt2(self.reference), side=side, **PPO)
            run = forward_of(trainer, self.batches[0])["outputs"]
            chosen = [row[mask == 1] for row, mask in zip(run["logprobs"], run["masks"], strict=True)]
            values = [row[mask == 1] for row, mask in zip(run["values"], run["masks"], strict=True)]
            found[side] = {"response_logprobs": chosen, "response_values": values}
        return case(inputs_of(self.batches[:1]), found, config=PPO)

    def seq2seq_mask(self) -> dict[str, Any]:
        queries = [torch.tensor([5, 6, 7]), torch.tensor([8, 9])]
        responses = [torch.tensor([PAD, 10, 11, EOS]), torch.tensor([PAD, 12, EOS])]
        trainer = trainer_of(t5(self.seq2seq), t5(perturbed(self.seq2seq, 0.04, 4)), **(PPO | {"batch_size": 2}))
        batch = {"queries": queries, "responses": responses}
        found = forward_of(trainer, batch)
        return case(batch, found["outputs"], config=PPO | {"batch_size": 2}, model_inputs=found["model_inputs"])

    def seq2seq_shortest(self) -> dict[str, Any]:
        queries = [torch.tensor([5, 6, 7]), torch.tensor([8, 9])]
        responses = [torch.tensor([PAD, EOS]), torch.tensor([PAD, 12, EOS])]
        scores = [torch.tensor(1.0), torch.tensor(-0.5)]
        config = PPO | {"batch_size": 2}
        trainer = trainer_of(t5(self.seq2seq), t5(perturbed(self.seq2seq, 0.04, 4)), **config)
        inputs = {"queries": queries, "responses": responses, "scores": scores}
        return case(inputs, outcome(lambda: trainer.step(queries, responses, scores)), config=config)

    def scaling(self) -> dict[str, Any]:
        trainer, _ = self.trainer(use_score_scaling=True)
        batch = self.batches[0]
        found = outcome(lambda: trainer.step(batch["queries"], batch["responses"], batch["scores"]))
        return case(inputs_of([batch]), found, config=PPO | {"use_score_scaling": True})

    def last_loader_batch(self) -> dict[str, Any]:
        """Two batches inside a loop over the trainer's loader: the second is its last."""
        options = {"mini_batch_size": 1, "gradient_accumulation_steps": 4, "ppo_epochs": 1}
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        found = {}
        batches = batches_of(EQUAL_COUNTS)
        for name in ("outside", "inside"):
            AcceleratorState._reset_state(True)
            GradientState._reset_state()
            model = gpt2(self.policy)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            rows = Dataset.from_dict({"input_ids": [[row] for row in range(8)]})
            trainer = PPOTrainer(
                PPOConfig(**(PPO | options)), model, gpt2(self.reference), tokenizer(), rows, optimizer, list
            )
            updates = Updates(model, optimizer)
            loop = trainer.dataloader if name == "inside" else range(2)
            counts = []
            stream = np.random.RandomState(PPO["seed"])
            original, np.random.permutation = np.random.permutation, stream.permutation
            for _, batch in zip(loop, batches, strict=True):
                trainer.step(batch["queries"], batch["responses"], batch["scores"])
                counts.append(len(updates.norms) - sum(counts))
            np.random.permutation = original
            found[name] = {"updates": counts, "update_norms": updates.norms, "abs_sums": absolute_sums(model)}
        return case(inputs_of(batches), found, config=PPO | options, optimizer={"name": "SGD", "lr": 0.1})

    def unequal_counts(self) -> dict[str, Any]:
        """Micro-batches with different token counts are averaged as if they were equally long."""
        found = {}
        one, four = {"mini_batch_size": 4}, {"mini_batch_size": 1, "gradient_accumulation_steps": 4}
        for name, options in (("one_mini_batch", one), ("four_micro_batches", four)):
            trainer, updates = self.trainer(sgd=True, ppo_epochs=1, **options)
            run = run_steps(trainer, self.batches[:1])
            weights = parameters(trainer.model)
            kept = {key: weights[key] for key in ("v_head.summary.weight", "transformer.ln_f.weight")}
            found[name] = {"options": options, "permutations": run["permutations"], "update_norms": updates.norms}
            found[name] |= {"weights": kept, "abs_sums": absolute_sums(trainer.model)}
        config = PPO | {"ppo_epochs": 1}
        return case(inputs_of(self.batches[:1]), found, config=config, optimizer={"name": "SGD", "lr": 0.1})

    def single_token_batch(self) -> dict[str, Any]:
        config = PPO | {"batch_size": 1, "mini_batch_size": 1}
        batch = batch_of(([3], [1]), seed=21)
        trainer, _ = self.trainer(**config)
        stats = run_steps(trainer, [batch])["stats"][0]
        broken = {key for key, value in stats.items() if np.isnan(np.asarray(value, dtype=float)).any()}
        weights = parameters(trainer.model)
        count = sum(bool(value.isnan().any()) for value in weights.values())
        outputs = {"nan_statistics": sorted(broken), "nan_parameters": count, "parameters": len(weights)}
        return case(inputs_of([batch]), outputs, config=config)

    def single_token_mini_batch(self) -> dict[str, Any]:
        config = PPO | {"batch_size": 2, "mini_batch_size": 1}
        batch = batch_of(([3, 2], [1, 3]), seed=22)
        trainer, _ = self.trainer(**config)
        run = run_steps(trainer, [batch])
        stats = run["stats"][0]
        broken = {key for key, value in stats.items() if np.isnan(np.asarray(value, dtype=float)).any()}
        weights = parameters(trainer.model)
        count = sum(bool(value.isnan().any()) for value in weights.values())
        outputs = {"nan_statistics": sorted(broken), "nan_parameters": count, "parameters": len(weights)}
        outputs |= {"permutations": run["permutations"], "stats": stats}
        return case(inputs_of([batch]), outputs, config=config)

    def one_sample(self) -> dict[str, Any]:
        config = PPO | {"batch_size": 1, "mini_batch_size": 1}
        batch = batch_of(([3], [4]), seed=23)
        trainer, _ = self.trainer(**config)
        stats = run_steps(trainer, [batch])["stats"][0]
        names = ("ppo/std_scores", "tokens/queries_len_std", "tokens/responses_len_std")
        return case(inputs_of([batch]), {name: stats[name] for name in names}, config=config)

    def empty_response(self) -> dict[str, Any]:
        config = PPO | {"batch_size": 2, "mini_batch_size": 2}
        batch = batch_of(([3, 2], [0, 3]), seed=24)
        trainer, _ = self.trainer(**config)
        found = outcome(lambda: trainer.step(batch["queries"], batch["responses"], batch["scores"]))
        return case(inputs_of([batch]), found, config=config)

    def whole_number_scores(self) -> dict[str, Any]:
        batch = self.batches[0] | {"scores": [torch.tensor(score) for score in (1, 0, 2, 1)]}
        trainer, _ = self.trainer()
        found = outcome(lambda: trainer.step(batch["queries"], batch["responses"], batch["scores"]))
        return case(inputs_of([batch]), found, config=PPO)

    def unmasked_statistics(self) -> dict[str, Any]:
        config = PPO | {"batch_size": 2, "mini_batch_size": 2, "ppo_epochs": 1}
        batch = batch_of(([2, 3], [3, 2]), seed=25)
        trainer, _ = self.trainer(**config)
        stats = run_steps(trainer, [batch])["stats"][0]
        names = ("ppo/policy/advantages", "ppo/policy/ratio", "ppo/policy/advantages_mean")
        outputs = {name: stats[name] for name in names} | {"response_tokens": 5}
        return case(inputs_of([batch]), outputs, config=config)

    def mode_after_step(self) -> dict[str, Any]:
        """Dropout of 0.5 in the policy: after a step `generate` draws with it, even greedily."""
        dropout = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
        trainer = trainer_of(gpt2(self.policy, **dropout), gpt2(self.reference), **PPO)
        trainer.model.eval()
        query = self.batches[0]["queries"][0]
        options = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": PAD, "eos_token_id": None}
        found: dict[str, Any] = {}
        for name in ("before", "after"):
            texts = {tuple(trainer.generate(query, **options)[0].tolist()) for _ in range(6)}
            found[f"{name}_training"] = trainer.model.training
            found[f"{name}_distinct_greedy_outputs"] = len(texts)
            if name == "before":
                run_steps(trainer, self.batches[:1])
        return case(inputs_of(self.batches[:1]), found, config=PPO, model_changes=dropout)

    def early_stop(self) -> dict[str, Any]:
        """The limit lies between the policy KL of the epoch's last mini-batch and the mean over the epoch."""
        kls: list[float] = []
        found: dict[str, Any] = {}
        for target in (None, 0.5):
            options: dict[str, Any] = {"ppo_epochs": 4, "learning_rate": 1e-2}
            if target is not None:
                options |= {"early_stopping": True, "target_kl": target * kls[1]}
            trainer, updates = self.trainer(**options)
            measured = self.record_minibatches(trainer)
            run = run_steps(trainer, self.batches[1:])
            kls = [float(stats["policy/policykl"]) for stats in measured]
            first = [self.batches[1]["responses"][row] for row in run["permutations"][0]]
            tokens = [sum(len(response) for response in first[i : i + 2]) for i in (0, 2)]
            mean = sum(kl * count for kl, count in zip(kls, tokens, strict=False)) / sum(tokens)
            found["without_limit" if target is None else "with_limit"] = {
                "options": options,
                "updates": len(updates.norms),
                "minibatch_policykl": kls,
                "first_epoch_tokens": tokens,
                "first_epoch_mean_policykl": mean,
                "permutations": run["permutations"],
                "abs_sums": absolute_sums(trainer.model),
            }
        return case(inputs_of(self.batches[1:]), found, config=PPO)

    @staticmethod
    def record_minibatches(trainer: PPOTrainer) -> list[Any]:
        measured: list[Any] = []
        original = trainer.train_minibatch

        def train_minibatch(*arguments: Any) -> Any:
            measured.append(original(*arguments))
            return measured[-1]

        trainer.train_minibatch = train_minibatch
        return measured

    def checkpointing(self) -> dict[str, Any]:
        trainer, _ = self.trainer(gradient_checkpointing=True)
        calls = []
        for layer in trainer.model.pretrained_model.transformer.h:
            original = layer._gradient_checkpointing_func
            layer._gradient_checkpointing_func = lambda *given, run=original, **named: (
                calls.append(1),
                run(*given, **named),
            )[1]
        flags = [bool(layer.gradient_checkpointing) for layer in trainer.model.pretrained_model.transformer.h]
        run_steps(trainer, self.batches[:1])
        config = PPO | {"gradient_checkpointing": True}
        return case(
            inputs_of(self.batches[:1]), {"checkpointed_calls": len(calls), "layer_flags": flags}, config=config
        )

    def eos_in_prompt(self) -> dict[str, Any]:
        trainer, _ = self.trainer()
        queries = [torch.tensor([5, EOS, 7, 9]), torch.tensor([6, 8])]
        options = {"do_sample": False, "max_new_tokens": 4, "pad_token_id": PAD, "eos_token_id": EOS}
        trainer.model.eval()
        outputs = {
            "list_with_prompt": trainer.generate(queries, return_prompt=True, **options),
            "list_without_prompt": trainer.generate(queries, return_prompt=False, **options),
            "one_tensor_with_prompt": trainer.generate(queries[0], return_prompt=True, **options)[0],
        }
        return case({"queries": queries}, outputs, config=PPO, generation=options)

    def start_is_eos(self) -> dict[str, Any]:
        """An encoder-decoder that starts with eos, as BART does."""
        sizes = {"vocab_size": VOCABULARY, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
        sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32}
        sizes |= {"decoder_ffn_dim": 32, "max_position_embeddings": 64, "pad_token_id": PAD, "bos_token_id": 2}
        sizes |= {"eos_token_id": EOS, "decoder_start_token_id": EOS, "forced_eos_token_id": None}
        bart = BartForConditionalGeneration(BartConfig(**sizes))
        model = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(bart, summary_dropout_prob=0.0)
        filled(model, fixed_weights(shapes(model), seed=6)).eval()
        trainer = trainer_of(model, None, **PPO)
        queries = [torch.tensor([5, 6, 7]), torch.tensor([8, 9])]
        options = {"do_sample": False, "min_new_tokens": 5, "max_new_tokens": 5}
        outputs = {
            "list": trainer.generate(queries, **options),
            "one_tensor_lengths": [trainer.generate(query, **options).shape[1] for query in queries],
        }
        return case({"queries": queries}, outputs, model_config=sizes, generation=options)

    def adapters(self, folder: Path) -> dict[str, Any]:
        return reference_generation(folder, self.policy)


def reference_generation(folder: Path, weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    """A LoRA policy without a reference model: generate_ref_response should run with the adapter off."""
    from peft import LoraConfig, get_peft_model

    base = filled(GPT2LMHeadModel(GPT2Config(**GPT2)), weights)
    queries = [torch.tensor([5, 6, 7]), torch.tensor([8, 9])]
    options = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": PAD, "eos_token_id": None}
    base.eval()
    plain = [base.generate(input_ids=query.unsqueeze(0), **options)[0] for query in queries]
    lora = {"r": 2, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ["c_attn"], "fan_in_fan_out": True}
    adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **lora))
    generator = torch.Generator().manual_seed(8)
    path = folder / "adapter.safetensors"
    with torch.no_grad():
        named = {name: value for name, value in adapted.named_parameters() if "lora_" in name}
        for name, value in named.items():
            value.copy_(load_file(path)[name] if path.exists() else 0.4 * torch.randn(value.shape, generator=generator))
    if not path.exists():
        save_file({name: value.detach() for name, value in named.items()}, path)
    model = AutoModelForCausalLMWithValueHead.from_pretrained(adapted, summary_dropout_prob=0.0)
    trainer = trainer_of(model, None, **PPO)
    model.eval()
    outputs: dict[str, Any] = {"base_model": plain}
    found = [trainer.generate(query, generate_ref_response=True, **options) for query in queries]
    outputs["one_tensor"] = {"policy": [pair[0][0] for pair in found], "reference": [pair[1][0] for pair in found]}
    pair = trainer.generate(queries, generate_ref_response=True, **options)
    outputs["list"] = {"policy": pair[0], "reference": pair[1]}
    start = {"policy": "policy.safetensors", "adapter": path.name}
    return case({"queries": queries}, outputs, start=start, lora=lora, generation=options, config=PPO)


def write_divergences(folder: Path) -> None:
    runs = Divergences(folder)
    controller = AdaptiveKLController(0.2, 6.0, 100.0)
    controller.update(0.0, 1000)
    negative = {"start": 0.2, "target": 6.0, "horizon": 100.0, "currents": [0.0], "counts": [1000]}
    masked = {"xs": torch.tensor([1.0, 2.0, 3.0, 100.0]), "mask": torch.tensor([1, 1, 1, 0])}
    found = get_global_statistics(Accelerator(), masked["xs"], mask=masked["mask"])
    statistics = dict(zip(("mean", "variance", "count"), (float(x) for x in found), strict=True))
    calls: dict[str, Callable[[], dict[str, Any]]] = {
        "whitened_rewards_reach_padding": whitened_rewards,
        "holes_are_states_of_value_zero": holes,
        "mask_ignored_by_the_sum": lambda: case(masked, statistics),
        "multiplier_below_zero": lambda: case(negative, {"values": [float(controller.value)]}),
        "clipping_only_on_the_first_update": runs.clipping,
        "guard_still_moves_weights": runs.guard,
        "left_padding_shifts_absolute_positions": runs.left_padding,
        "decoder_mask_misses_the_first_token": runs.seq2seq_mask,
        "shortest_decoder_response_fails": runs.seq2seq_shortest,
        "score_scaling_fails": runs.scaling,
        "last_loader_batch_ends_accumulation": runs.last_loader_batch,
        "unequal_micro_batches_weigh_alike": runs.unequal_counts,
        "single_token_batch_is_nan": runs.single_token_batch,
        "single_token_mini_batch_is_nan": runs.single_token_mini_batch,
        "one_sample_deviation_is_nan": runs.one_sample,
        "empty_response_fails": runs.empty_response,
        "whole_number_scores_fail": runs.whole_number_scores,
        "statistics_of_unmasked_positions": runs.unmasked_statistics,
        "training_mode_after_step": runs.mode_after_step,
        "early_stop_looks_at_the_last_mini_batch": runs.early_stop,
        "gradient_checkpointing_without_effect": runs.checkpointing,
        "prompt_cut_at_its_eos": runs.eos_in_prompt,
        "start_token_taken_for_eos": runs.start_is_eos,
        "reference_generation_with_the_adapter": lambda: runs.adapters(folder),
    }
    cases = {}
    for name, call in calls.items():
        found = outcome(call)
        cases[name] = found.get("result", {"could_not_run": found})
        if "exception" in found:
            print(f"{name} could not run: {found}")
    start = {"policy": "policy.safetensors", "reference": "reference.safetensors", "seq2seq": "seq2seq.safetensors"}
    configs = {"model_config": GPT2, "seq2seq_config": T5, "start": start}
    write(folder / "divergences.json", configs | {"cases": cases})


# d. encoder-decoder, e. generation


def write_seq2seq(folder: Path) -> None:
    queries = [torch.tensor([5, 6, 7]), torch.tensor([8, 9]), torch.tensor([20, 21, 22, 23]), torch.tensor([30])]
    responses = [[10, 11, 12, EOS], [13, 14], [15, 16, 17, 18, EOS], [19, 20, EOS]]
    responses = [torch.tensor([PAD, *response]) for response in responses]
    weights = load_file(folder / "seq2seq.safetensors")
    trainer = trainer_of(t5(weights), t5(perturbed(weights, 0.04, 4)), **PPO)
    found = forward_of(trainer, {"queries": queries, "responses": responses})
    content = {"config": PPO, "model_config": T5, "start": {"policy": "seq2seq.safetensors"}}
    content |= {"divergence": "decoder_mask_misses_the_first_token", "queries": queries, "responses": responses}
    write(folder / "seq2seq.json", content | found)


def write_generate(folder: Path) -> None:
    """Greedy; the second eos is a token which the model does choose, so that some responses end early."""
    queries = batch_of(COUNTS[0], seed=11)["queries"] + batch_of(COUNTS[1], seed=12)["queries"][:2]
    weights, other = load_file(folder / "policy.safetensors"), load_file(folder / "reference.safetensors")
    cases = []
    free = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": PAD, "eos_token_id": None}
    trainer = trainer_of(gpt2(weights).eval(), gpt2(other).eval(), **PPO)
    chosen = trainer.generate(queries[0], return_prompt=False, **free)[0][2].item()
    for eos in (EOS, chosen):
        options = free | {"eos_token_id": eos}
        trainer = trainer_of(gpt2(weights).eval(), gpt2(other).eval(), eos=eos, **PPO)
        for prompt in (True, False):
            found: dict[str, Any] = {}
            found["one_tensor"] = [trainer.generate(query, return_prompt=prompt, **options)[0] for query in queries]
            found["list"] = trainer.generate(queries, return_prompt=prompt, **options)
            found["list_of_two"] = trainer.generate(queries, batch_size=2, return_prompt=prompt, **options)
            pair = trainer.generate(queries, return_prompt=prompt, generate_ref_response=True, **options)
            found["list_pair"] = {"policy": pair[0], "reference": pair[1]}
            labels = {"return_prompt": prompt, "tokenizer_eos": eos, "generation": options}
            cases.append(case({"queries": queries}, found, **labels))
    start = {"policy": "policy.safetensors", "reference": "reference.safetensors"}
    write(folder / "generate.json", {"model_config": GPT2, "config": PPO, "start": start, "cases": cases})


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    if trl.__version__ == "0.11.4":
        make_weights(folder)
        write_functions(folder)
        write_steps(folder)
        write_forward(folder)
        write_divergences(folder)
        write_seq2seq(folder)
        write_generate(folder)
    elif trl.__version__ == "0.9.6":
        write(folder / "functions_0_9_6.json", moments_and_statistics())
        write_scaled_steps(folder)
    else:
        found = reference_generation(folder, load_file(folder / "policy.safetensors"))
        content = moments_and_statistics() | {"model_config": GPT2, "reference_generation": found}
        write(folder / "functions_0_7_4.json", content)


if __name__ == "__main__":
    main()
