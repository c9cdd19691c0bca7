"""Reference log-probs: sequences a second against TRL's precompute, on the same pairs, in turns.

    python -m examples.benchmarks.scoring --data pairs.jsonl.gz --tokenizer FOLDER --max-length 2048
    python -m examples.benchmarks.scoring --data pairs.jsonl.gz --model FOLDER --max-length 512

TRL scores every pair in the order of the file, 8 at a time, padded. Ours scores every different sequence once, all
completions of a prompt together. The pairs are handed to both in parts of whole prompts.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from dpo.lm.logprobs import LogprobModel
from dpo.lm.models import freeze, load_model
from dpo.lm.sequences import TokenSequence
from dpo.text.tokenizers import load_tokenizer
from examples.benchmarks import workload
from examples.benchmarks.compare import write_model
from examples.benchmarks.contestants import Task, Trl
from examples.benchmarks.workload import Pair
from pipeline.models.scorer import score_all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a file of pairs")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tokenizer", type=Path, help="its folder; the model is a random one of 27 million parameters")
    source.add_argument("--model", type=Path, help="a folder with a model and its tokenizer, in place of a random one")
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--prompts", type=int, default=24, help="whose pairs are scored")
    parser.add_argument("--prompts-at-once", type=int, default=4)
    parser.add_argument("--batch-tokens", type=int, default=16384, help="reference.batch_tokens")
    parser.add_argument("--threads", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("examples/results"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = (
        workload.benchmark_tokenizer(options.tokenizer) if options.tokenizer else load_tokenizer(str(options.model))
    )
    parts, vocabulary = make_parts(options, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        config = workload.llama(vocabulary, 512, 8, 8, 1376, options.max_length)
        model = options.model or write_model(config, tokenizer, Path(folder))
        task = Task(model, [parts[0][:8]], vocabulary, "float32", options.threads, "cpu")
        trainer = Trl(8, defaults=True).trainer(task, None, None)
        ours = LogprobModel(freeze(load_model(model, torch.float32)))
        seconds = [(theirs(trainer, part), our_own(ours, part, options.batch_tokens)) for part in parts]
    ratio = sum(t for t, _ in seconds) / sum(o for _, o in seconds)
    report = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "data": options.data.name.split(".")[0] + ("" if options.model is None else f"-{options.model.name}"),
        "pairs": sum(map(len, parts)),
        "seconds": seconds,
        "times_as_fast": ratio,
        "median_of_parts": statistics.median(t / o for t, o in seconds),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{report['date'][:10]}-scoring-{report['data']}.json"
    path.write_text(json.dumps(report) + "\n")
    print(f"{report['pairs']} pairs: TRL {sum(t for t, _ in seconds):.1f} s, ours {sum(o for _, o in seconds):.1f} s")
    print(f"{ratio:.2f}x, median of {len(parts)} parts {report['median_of_parts']:.2f}x; {path}")


def make_parts(options: argparse.Namespace, tokenizer: Any) -> tuple[list[list[Pair]], int]:
    """Pairs of whole prompts, part by part."""
    pairs, vocabulary = workload.read_pairs(options.data, tokenizer, options.max_length, seed=0)
    by_prompt: dict[tuple[int, ...], list[Pair]] = {}
    for pair in pairs:
        by_prompt.setdefault(tuple(pair.prompt), []).append(pair)
    prompts = list(by_prompt.values())[: options.prompts]
    at_once = options.prompts_at_once
    parts = [prompts[i : i + at_once] for i in range(0, len(prompts), at_once)]
    return [[pair for prompt in part for pair in prompt] for part in parts], vocabulary


def theirs(trainer: Any, pairs: list[Pair]) -> float:
    rows = [{"prompt_ids": p.prompt, "chosen_ids": p.chosen, "rejected_ids": p.rejected} for p in pairs]
    began = time.perf_counter()
    for start in range(0, len(rows), 8):
        trainer.compute_ref_log_probs(trainer.ref_model, trainer.data_collator(rows[start : start + 8]))
    return time.perf_counter() - began


def our_own(model: LogprobModel, pairs: list[Pair], batch_tokens: int) -> float:
    different: dict[tuple[tuple[int, ...], tuple[int, ...]], TokenSequence] = {}
    for pair in pairs:
        for s in pair.sequences():
            different.setdefault((tuple(s.prompt_ids), tuple(s.completion_ids)), s)
    began = time.perf_counter()
    score_all(model, list(different.values()), 0, batch_tokens)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
