"""PPO on a toy: a tiny GPT-2, fresh from its config, learns to name fruit. A minute or two on a CPU; no download.

    python examples/ppo_toy.py [--steps 50] [--estimator rloo] [--folder examples/runs/ppo_toy]

A response has eight words or ends before with a full stop; its reward is an eighth for every fruit: about 0.14 by
chance, 1 at best. It prints a table, and leaves `curve.png` and the trained policy in the folder. Beside it a policy
with learning rate 0 is run. With `--estimator rloo` or `grpo` the policy has no value head: four answers to a request
are each other's baseline.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from ppo import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer

FRUIT = ["apple", "cherry", "fig", "plum"]
OTHER = ["brick", "chalk", "clay", "flint", "glass", "iron", "marble", "sand", "slate", "steel", "stone", "zinc"]
ASKED = ["buy", "bring", "find", "name", "paint", "sell", "show", "want"]
WORDS = 8  # in a response


def make_tokenizer() -> Any:
    words = [".", *FRUIT, *OTHER, *ASKED]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="."))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=".", eos_token=".")


def make_policy(vocabulary: int, dtype: torch.dtype = torch.float32, values: bool = True) -> Any:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=32, n_embd=64, n_layer=2, n_head=4,
        bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).to(dtype)
    return AutoModelForCausalLMWithValueHead(model) if values else model


class Requests(torch.utils.data.Dataset):
    """Two or three words each, such as "show find want"."""

    def __init__(self, tokenizer: Any, number: int = 512):
        generator = torch.Generator().manual_seed(0)
        self.rows = []
        for _ in range(number):
            length = 2 + int(torch.randint(2, (), generator=generator))
            query = " ".join(ASKED[i] for i in torch.randint(len(ASKED), (length,), generator=generator).tolist())
            self.rows.append({"query": query, "input_ids": torch.tensor(tokenizer(query)["input_ids"])})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def share_of_fruit(response: str) -> torch.Tensor:
    return torch.tensor(sum(word in FRUIT for word in response.split()) / WORDS)


def run(learning_rate: float, steps: int, estimator: Any = "gae") -> tuple[PPOTrainer, list[dict[str, float]]]:
    """Train for so many steps; the trainer, and one row a step."""
    tokenizer = make_tokenizer()
    config = PPOConfig(
        batch_size=64, mini_batch_size=64, ppo_epochs=4, learning_rate=learning_rate, target=12.0, horizon=2000,
        init_kl_coef=0.02, max_grad_norm=1.0, seed=0, advantage_estimator=estimator,
        answers_per_prompt=1 if estimator == "gae" else 4,
    )  # fmt: skip
    data = Requests(tokenizer)

    def collate(rows: list[Any]) -> dict[str, list[Any]]:
        return {key: [row[key] for row in rows] for key in rows[0]}

    policy = make_policy(len(tokenizer), values=estimator == "gae")
    trainer = PPOTrainer(config, policy, None, tokenizer, dataset=data, data_collator=collate)
    sampling = {"max_new_tokens": WORDS, "do_sample": True, "top_k": 0}  # top_k 0: from the whole distribution
    rows: list[dict[str, float]] = []
    while len(rows) < steps:
        for batch in trainer.dataloader:
            responses = trainer.generate(batch["input_ids"], batch_size=64, return_prompt=False, **sampling)
            batch["response"] = tokenizer.batch_decode(responses)
            rewards = [share_of_fruit(response) for response in batch["response"]]
            stats = trainer.step(batch["input_ids"], responses, rewards)
            trainer.log_stats(stats, batch, rewards)
            names = {"reward": "ppo/mean_scores", "kl": "objective/kl", "coefficient": "objective/kl_coef",
                     "entropy": "ppo/policy/entropy", "value error": "ppo/val/error"}  # fmt: skip
            rows.append({name: stats[key] for name, key in names.items() if key in stats})
            if len(rows) == steps:
                break
    return trainer, rows


def show(rows: list[dict[str, float]]) -> None:
    table = Table("step", *rows[0])
    for i, row in enumerate(rows, 1):
        if i == 1 or i % 5 == 0 or i == len(rows):
            table.add_row(str(i), *(f"{value:.3f}" for value in row.values()))
    Console().print(table)


def draw(rows: list[dict[str, float]], fixed: list[dict[str, float]], path: Path, name: str = "PPO") -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    steps = range(1, len(rows) + 1)
    left.plot(steps, [row["reward"] for row in rows], label=name)
    left.plot(steps, [row["reward"] for row in fixed], label="learning rate 0", color="gray")
    left.axhline(0.9, linestyle=":", color="gray", linewidth=1, label="nine tenths of the best")
    left.set(xlabel="step", ylabel="mean reward (at best 1)", ylim=(0, 1.02))
    left.legend(frameon=False, loc="center right")
    right.plot(steps, [row["kl"] for row in rows], label=name)
    right.plot(steps, [row["kl"] for row in fixed], label="learning rate 0", color="gray")
    right.legend(frameon=False, loc="center right")
    right.set(xlabel="step", ylabel="KL to the reference, nats a response")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50, help="of 64 answers each; default 50")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="default 0.003")
    parser.add_argument(
        "--estimator", choices=["gae", "rloo", "grpo"], default="gae", help="of advantages; default gae"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(__file__).parent / "runs" / "ppo_toy", help="default %(default)s"
    )
    given = parser.parse_args()
    trainer, rows = run(given.learning_rate, given.steps, given.estimator)
    _, fixed = run(0.0, given.steps, given.estimator)
    show(rows)
    last, flat = rows[-5:], fixed[-5:]
    print(
        f"mean reward: {rows[0]['reward']:.2f} at first, {sum(r['reward'] for r in last) / len(last):.2f} over the "
        f"last {len(last)} steps; at most 1. KL at most {max(r['kl'] for r in rows):.1f} nats.\n"
        f"learning rate 0: {fixed[0]['reward']:.2f} at first, {sum(r['reward'] for r in flat) / len(flat):.2f} at last."
    )
    given.folder.mkdir(parents=True, exist_ok=True)
    draw(rows, fixed, given.folder / "curve.png", "PPO" if given.estimator == "gae" else given.estimator.upper())
    trainer.save_pretrained(given.folder / "policy")
    print(f"The picture is {given.folder / 'curve.png'}, the policy {given.folder / 'policy'}.")


if __name__ == "__main__":
    main()
