"""CPU time of a PPO step whose prompts have several answers each: checkouts of this project, and TRL, in turns.

    python -m examples.benchmarks.ppo                                            # this checkout
    python -m examples.benchmarks.ppo --tree BEFORE --tree . --trl TRL --rounds 6

TRL is a folder that holds TRL 0.11.4 and what it imports beside this project's own environment:

    pip install --no-deps --target TRL trl==0.11.4 tyro==1.0.17 shtab docstring-parser rich typeguard markdown-it-py \\
        mdurl pygments

Each contestant is a process of its own with one thread, which takes one step whenever it is its turn. All take the same
steps: a random Llama of 4 layers, width 64 and 1,024 tokens; 4 prompts of 200 tokens with 4 answers each of 20 to 59;
mini-batches of 8 samples, 4 epochs. A checkout whose configuration has `group_mini_batches` also runs with that.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
VOCABULARY, PROMPTS, ANSWERS, PROMPT_LENGTH, SHORTEST, LONGEST = 1024, 4, 4, 200, 20, 59
NAMES = {"objective/kl": "KL", "ppo/loss/total": "loss"}


class Contestant(NamedTuple):
    name: str
    path: str  # what PYTHONPATH is
    package: str  # "ppo" or "trl"
    grouped: bool = False


def policies(package: str) -> tuple[Any, Any]:
    """A random policy with a value head, and a reference of other weights: their KL is not 0."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    module = __import__(package)
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=512,
            pad_token_id=0,
        )
        network = LlamaForCausalLM(config)
        torch.manual_seed(2)  # libraries draw their head at different moments
        head = {"v_head_init_strategy": "normal", "summary_dropout_prob": 0.0}
        made.append(module.AutoModelForCausalLMWithValueHead.from_pretrained(network, **head).eval())
    return made[0], made[1]


def tokenizer() -> Any:
    """One that only knows its padding token; nothing here is text."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "</s>": 1}
    inner = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", padding_side="left")


def batch() -> tuple[list[Any], list[Any], list[Any]]:
    """Queries, responses, scores."""
    import torch

    draw = torch.Generator().manual_seed(0)
    queries, responses = [], []
    for _ in range(PROMPTS):
        query = torch.randint(2, VOCABULARY, (PROMPT_LENGTH,), generator=draw)
        for _ in range(ANSWERS):
            length = int(torch.randint(SHORTEST, LONGEST + 1, (), generator=draw))
            queries.append(query)
            responses.append(torch.randint(2, VOCABULARY, (length,), generator=draw))
    return queries, responses, list(torch.randn(len(queries), generator=draw))


def serve(package: str, grouped: bool) -> None:
    """Take a step for each line of input; answer with its CPU seconds and some statistics, as JSON."""
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    module = __import__(package)
    data = batch()
    options = {"group_mini_batches": True} if grouped else {}
    config = module.PPOConfig(batch_size=len(data[0]), mini_batch_size=8, ppo_epochs=4, learning_rate=1e-5, **options)
    trainer = module.PPOTrainer(config, *policies(package), tokenizer())
    print(json.dumps({"ready": package}), flush=True)
    for _ in sys.stdin:
        began = time.process_time()
        stats = trainer.step(*data)
        seconds = time.process_time() - began
        print(json.dumps({"seconds": seconds} | {name: float(stats[key]) for key, name in NAMES.items()}), flush=True)


def start(contestant: Contestant) -> subprocess.Popen[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": contestant.path}
    # -P: else this file's folder would come first on the path, and this file be the package `ppo`.
    words = [sys.executable, "-P", __file__, "--serve", contestant.package]
    words += ["--grouped"] if contestant.grouped else []
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(words, env=environment, text=True, **pipes)  # type: ignore[call-overload]


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The next line of JSON that a contestant says; libraries say other things.

    Raises:
        RuntimeError: it has ended.
    """
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise RuntimeError(f"{' '.join(process.args)} has ended: run it by hand to see why")  # type: ignore[arg-type]


def contestants(trees: list[Path], trl: Path | None) -> list[Contestant]:
    found = []
    for tree in trees:
        found.append(Contestant(str(tree), str(tree), "ppo"))
        if "group_mini_batches" in (tree / "ppo" / "config.py").read_text(encoding="utf-8"):
            found.append(Contestant(f"{tree}, grouped", str(tree), "ppo", grouped=True))
    if trl is not None:
        found.append(Contestant("TRL", str(trl), "trl"))
    return found


def measure(all_of_them: list[Contestant], rounds: int) -> dict[str, list[dict[str, float]]]:
    """Steps of all contestants in turns; the first of each, in which libraries prepare themselves, counts as well."""
    running = {contestant.name: start(contestant) for contestant in all_of_them}
    results: dict[str, list[dict[str, float]]] = {name: [] for name in running}
    try:
        for process in running.values():
            answer(process)
        for number in range(rounds):
            for name, process in running.items():
                assert process.stdin is not None
                process.stdin.write("step\n")
                process.stdin.flush()
                results[name].append(answer(process))
                shown = ", ".join(f"{key} {value:.5f}" for key, value in results[name][-1].items())
                print(f"round {number + 1}, {name}: {shown}", flush=True)
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    return results


def main() -> None:
    parser = argparse.ArgumentParser("python -m examples.benchmarks.ppo", description=__doc__.split("\n")[0])
    parser.add_argument("--tree", action="append", type=Path, help="a checkout (this one); several are run in turns")
    parser.add_argument("--trl", type=Path, help="a folder with TRL 0.11.4 and what it imports (none)")
    parser.add_argument("--rounds", type=int, default=6, help="steps of each contestant (6)")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON into this folder")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--grouped", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve, options.grouped)
        return
    trees = [tree.resolve() for tree in options.tree or [ROOT]]
    results = measure(contestants(trees, options.trl and options.trl.resolve()), options.rounds)
    best = {name: min(found["seconds"] for found in steps) for name, steps in results.items()}
    first = next(iter(best.values()))
    for name, seconds in best.items():
        print(
            f"{name}: best of {options.rounds} {seconds:.3f} s of CPU time a step, 1/{first / seconds:.2f} of the first"
        )
    if options.out is not None:
        write(options.out, trees, results)


def write(folder: Path, trees: list[Path], results: dict[str, Any]) -> None:
    """Write all steps as JSON; folders become numbers of trees."""
    date = datetime.now().isoformat(timespec="seconds")
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    versions = {name: version(name) for name in ("torch", "transformers", "accelerate")}
    report = {"date": date, "machine": machine, "python": platform.python_version(), **versions, "results": results}
    text = json.dumps(report)
    for number, tree in enumerate(trees):
        text = text.replace(str(tree), f"tree {number + 1}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{date[:10]}-ppo.json"
    path.write_text(text + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
