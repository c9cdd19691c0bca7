"""Held-out pairs + the aligned policy -> preference metrics, a row a pair, and answers before and after."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import torch

from dpo.lm.batch import ScoredTokens
from dpo.lm.head import Logps
from dpo.lm.models import freeze, load_model
from dpo.losses import PairLogps
from dpo.step import Baseline, couple, pair_logps, preference_step
from dpo.terms import Mixture, couples, for_evaluation
from pipeline.place import Place
from pipeline.stages.cluster import connect, over, translated_errors
from pipeline.stages.order import Epochs
from pipeline.stages.score import identity_of, score_sequences, threads
from pipeline.stages.shuffle import Order, write_epoch
from pipeline.stages.start import Start
from pipeline.store.artifacts import Artifact, begin, commit, find
from pipeline.store.tokens import lists

FORMAT = 2
PROMPTS_AT_ONCE = 32


class Evaluation(NamedTuple):
    """`metrics` under their eval/ names; `answers` is None where none were asked for."""

    metrics: dict[str, float]
    answers: dict[str, Any] | None
    folder: Path | None


def evaluate(place: Place, tokens: Artifact, epochs: Epochs, start: Start, weights: Start) -> Evaluation:
    """Evaluate on the held-out pairs into `runs/<name>/evaluation`; without held-out pairs do nothing."""
    parts = tokens.paths("eval/")
    if not parts:
        place.terminal.say("no held-out pairs (data.eval)")
        return Evaluation({}, None, None)
    settings = place.config.evaluate
    made_of = {
        "stage": "evaluate",
        "format": FORMAT,
        "epochs": epochs.artifact.fingerprint,
        "loss": place.config.loss.model_dump(),
        "policy": identity_of(place, weights)[0],
        "start": start.digest,
        "generate": [settings.generate_prompts, settings.max_new_tokens],
    }
    folder = place.run_dir / "evaluation"
    made = find(folder, made_of)
    if made is None:
        connect(place)
        begin(folder)
        metrics = _measure(place, parts, epochs, weights, folder)
        answers = _answer(place, parts, start, weights, folder) if settings.generate_prompts else None
        made = commit(folder, made_of, {"metrics": metrics, "answers": answers})
        _log(place, metrics)
    result = Evaluation(made.counts["metrics"], made.counts["answers"], folder)
    place.counts["eval_accuracy"] = result.metrics["eval/rewards/accuracies"]
    place.terminal.say(_said(result))
    return result


def _said(result: Evaluation) -> str:
    said = f"accuracy {result.metrics['eval/rewards/accuracies']:.3f}, loss {result.metrics['eval/loss']:.4g}"
    if result.answers is not None:
        before, after = result.answers["before"], result.answers["after"]
        said += (
            f"; {result.answers['prompts']} prompts answered as chosen: {before['chosen']:.1%} before, "
            f"{after['chosen']:.1%} after"
        )
    return said


def _measure(place: Place, parts: list[Path], epochs: Epochs, weights: Start, folder: Path) -> dict[str, float]:
    """Score the held-out pairs with the policy and compare with the reference's log-probs; one row a pair on disk."""
    scores = score_sequences(place, parts, weights, "evaluate")
    write_epoch(
        parts, scores.cache, Order(place.config.run.seed, None), place.config.train.batch_pairs, folder / "policy"
    )
    mixture = for_evaluation(place.config.mixture, weights.baseline)
    sums: dict[str, float] = {}
    pairs = 0
    for number, path in enumerate(sorted((folder / "policy").glob("window-*.parquet"))):
        ours, theirs = pq.ParquetFile(path), pq.ParquetFile(epochs.feed.held_out[number])
        rows = []
        for step in range(ours.num_row_groups):  # as many pairs as a step: some losses compare pairs with one another
            table = ours.read_row_group(step)
            metrics, found = _measure_step(table, theirs.read_row_group(step), mixture)
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + float(value)
            rows.append(found)
        pairs += ours.metadata.num_rows
        pq.write_table(pa.concat_tables(rows), folder / f"pairs-{number:06}.parquet")
    shutil.rmtree(folder / "policy")
    return {f"eval/{name}": value / pairs for name, value in sums.items()}


def _measure_step(ours: pa.Table, theirs: pa.Table, mixture: Mixture) -> tuple[dict[str, torch.Tensor], pa.Table]:
    """Sums over some held-out pairs, and a row for each."""
    counts, policy = _values(ours)
    reference = _values(theirs)[1] if "chosen_logps" in theirs.column_names else None
    tokens = ScoredTokens(counts)
    sums = pair_logps(tokens, policy)
    rows = {"row_id": ours["row_id"], "policy_chosen": sums.chosen.numpy(), "policy_rejected": sums.rejected.numpy()}
    base = PairLogps(*torch.zeros(2, ours.num_rows, dtype=torch.float64))
    if reference is not None:
        base = pair_logps(tokens, reference)
        rows |= {"reference_chosen": base.chosen.numpy(), "reference_rejected": base.rejected.numpy()}
    coupling = couple(sums, base, mixture, Baseline())[0] if couples(mixture) else None
    per_token = ours.num_rows / max(1, int(counts[: ours.num_rows].sum()))
    found = preference_step(tokens, Logps(policy), reference, mixture, per_token, coupling)
    return found.metrics, pa.table(rows)


def _values(table: pa.Table) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of a table -> scored tokens of each sequence, the chosen ones first, and all their values."""
    values = [v for side in ("chosen", "rejected") for v in lists(table[f"{side}_logps"])]
    return torch.tensor([len(v) for v in values]), torch.from_numpy(np.concatenate(values).astype(np.float32))


def _answer(place: Place, parts: list[Path], start: Start, weights: Start, folder: Path) -> dict[str, Any]:
    """Greedy answers of both models, each prompt once, and how often they are a completion of the pair."""
    prompts = _prompts(parts, place.config.evaluate.generate_prompts)
    answers = {name: _generate(place, prompts, model, name) for name, model in (("before", start), ("after", weights))}
    tokenizer = place.tokenizer
    with (folder / "answers.jsonl").open("w", encoding="utf-8") as out:
        for number, pair in enumerate(prompts):
            texts = {name: tokenizer.decode(ids, skip_special_tokens=True) for name, ids in pair.items()}
            given = {name: tokenizer.decode(found[number], skip_special_tokens=True) for name, found in answers.items()}
            out.write(json.dumps({**texts, **given}, ensure_ascii=False) + "\n")
    rates: dict[str, Any] = {"prompts": len(prompts)}
    for name, found in answers.items():
        rates[name] = {
            side: sum(
                ids == _without_end(pair[side], tokenizer.eos_token_id)
                for ids, pair in zip(found, prompts, strict=True)
            )
            / len(prompts)
            for side in ("chosen", "rejected")
        }
    return rates


def _without_end(ids: list[int], eos_id: int) -> list[int]:
    return ids[: ids.index(eos_id)] if eos_id in ids else ids


def _prompts(parts: list[Path], count: int) -> list[dict[str, list[int]]]:
    """The first pairs with different prompts."""
    found: dict[tuple[int, ...], dict[str, list[int]]] = {}
    for path in parts:
        table = pq.read_table(path, columns=["prompt_ids", "chosen_ids", "rejected_ids"])
        for row in table.to_pylist():
            pair = {name.removesuffix("_ids"): ids for name, ids in row.items()}
            found.setdefault(tuple(pair["prompt"]), pair)
            if len(found) == count:
                return list(found.values())
    return list(found.values())


def _generate(place: Place, prompts: list[dict[str, list[int]]], model: Start, when: str) -> list[list[int]]:
    config = place.config.reference
    # Prompts of one length together: they pad each other less.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]["prompt"]))
    chunks = [order[i : i + PROMPTS_AT_ONCE] for i in range(0, len(order), PROMPTS_AT_ONCE)]
    items = [{"numbers": chunk, "prompts": [prompts[i]["prompt"] for i in chunk]} for chunk in chunks]
    options = {
        "folder": str(model.folder),
        "dtype": place.config.train.dtype,
        "max_new_tokens": place.config.evaluate.max_new_tokens,
        "eos_id": place.tokenizer.eos_token_id,
        "pad_id": place.pad_id,
        "threads": threads(config.cpus_per_actor, config.actors, config.gpus_per_actor),
    }
    dataset = over(items).map_batches(
        Answerer,
        fn_constructor_kwargs=options,
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(config.actors, len(items))),
        num_cpus=config.cpus_per_actor,
        num_gpus=config.gpus_per_actor or None,
    )
    answers: dict[int, list[int]] = {}
    with translated_errors():
        for row in dataset.iter_rows():
            answers.update(zip(row["numbers"], row["answers"], strict=True))
            place.terminal.live("evaluate", f"{len(answers)} of {len(prompts)} prompts answered, {when} DPO")
    return [answers[i] for i in range(len(prompts))]


class Answerer:
    """One frozen model that answers prompts greedily."""

    def __init__(self, folder: str, dtype: str, max_new_tokens: int, eos_id: int, pad_id: int, threads: int | None):
        if threads is not None:
            torch.set_num_threads(threads)
        self.model: Any = freeze(load_model(folder, getattr(torch, dtype))).to("cuda" if threads is None else "cpu")
        self.options = {"max_new_tokens": max_new_tokens, "eos_id": eos_id, "pad_id": pad_id}

    def __call__(self, table: pa.Table) -> pa.Table:
        found = [self.model.generate(prompts, **self.options) for prompts in table["prompts"].to_pylist()]
        kind = pa.list_(pa.list_(pa.int64()))
        return pa.table({"numbers": table["numbers"], "answers": pa.array(found, kind)})


def _log(place: Place, metrics: dict[str, float]) -> None:
    """Add a row at the step of the weights to metrics.jsonl, in place of one from an earlier evaluation."""
    path = place.run_dir / "metrics.jsonl"
    step = place.counts["weights_step"]
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    kept = [row for row in rows if not (row["step"] == step and "eval/loss" in row)]
    rows = sorted([*kept, {"step": step, **metrics}], key=lambda row: row["step"])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
