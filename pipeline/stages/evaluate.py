"""Held-out pairs + the aligned policy -> preference metrics, a row a pair, and answers before and after."""

from __future__ import annotations

import json
import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from dpo.lm.sequences import before_end
from dpo.lm.whole_folder import to_json
from dpo.terms import for_evaluation
from pipeline.cluster.items import Each, import_ahead
from pipeline.cluster.pool import on_pool
from pipeline.cluster.shuffle import write_epoch
from pipeline.data.tokenizer import pad_id
from pipeline.errors import Diverged
from pipeline.models.ask import answerer
from pipeline.models.device import device_of
from pipeline.models.identity import identity_of
from pipeline.models.measure import measure_window
from pipeline.models.start import Weights
from pipeline.place import Place
from pipeline.record import Made
from pipeline.stages.order import Epochs
from pipeline.stages.preflight import Inputs
from pipeline.stages.prompts import During, answered_during, held_out_prompts
from pipeline.stages.score import EVALUATED, score_sequences
from pipeline.stages.written import as_written
from pipeline.store import run_files
from pipeline.store.artifacts import Artifact, begin, commit, fingerprint, take_up
from pipeline.store.logs import read_steps
from pipeline.store.windows import Order

FORMAT_VERSION = 2
PROMPTS_AT_ONCE = 32


class Evaluation(NamedTuple):
    """The metrics of the held-out pairs under their eval/ names, and how often an answer was one of the pair's."""

    metrics: dict[str, float]
    answers: dict[str, Any] | None  # None where none were asked for
    folder: Path

    @property
    def answers_file(self) -> Path:
        """The answers themselves, one prompt a line."""
        return self.folder / run_files.ANSWERS


class Trained(NamedTuple):
    """The policy before and after preference training."""

    before: Weights
    after: Weights


def evaluate(
    place: Place, inputs: Inputs, each: Each, tokens: Artifact, epochs: Epochs, policies: Trained, weights_step: int
) -> Made[Evaluation]:
    """Evaluate on the held-out pairs into `runs/<name>/evaluation`; without held-out pairs do nothing.

    Args:
        weights_step: the optimizer step after which the weights were as they are.
    """
    parts, folder = tokens.paths("eval/"), place.run_dir / run_files.EVALUATION
    if not parts:
        return Made(Evaluation({}, None, folder), "no held-out pairs (data.eval)")
    settings, during = place.config.evaluate, answered_during(place)
    made_of = {
        "stage": "evaluate",
        "format": FORMAT_VERSION,
        "epochs": epochs.artifact.fingerprint,
        "loss": place.config.loss.model_dump(),
        "policy": identity_of(policies.after, place.config.train.dtype)[0],
        "start": policies.before.mark,
        "generate": [settings.generate_prompts, settings.max_new_tokens],
    }
    if during:
        made_of["during"] = fingerprint(during)
    made, peak = take_up(folder, made_of, place.terminal.note), 0
    if made is None:
        own = begin(folder)
        metrics, peak = _measure(place, inputs, each, parts, epochs, policies.after, own)
        _refuse_not_finite(metrics)
        answers = _answer(place, inputs, parts, policies, during, own) if settings.generate_prompts else None
        _log(place.run_dir / run_files.METRICS, weights_step, metrics)
        made = commit(own, folder, made_of, {"metrics": metrics, "answers": answers})
    result = Evaluation(made.counts["metrics"], made.counts["answers"], folder)
    return Made(result, _message(result), {"eval_accuracy": result.metrics["eval/rewards/accuracies"]}, peak)


def _refuse_not_finite(metrics: dict[str, float]) -> None:
    wrong = [f"{name} = {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if wrong:
        raise Diverged(
            f"The trained policy gives numbers on the held-out pairs that are not finite: {', '.join(wrong)}. Training "
            "diverged: lower train.learning_rate, and train under another run.name."
        )


def _message(result: Evaluation) -> str:
    said = f"accuracy {result.metrics['eval/rewards/accuracies']:.3f}, loss {result.metrics['eval/loss']:.4g}"
    if result.answers is not None:
        before, after = result.answers["before"], result.answers["after"]
        said += (
            f"; {result.answers['prompts']} prompts answered as chosen: {before['chosen']:.1%} before, "
            f"{after['chosen']:.1%} after"
        )
    return said


def _measure(
    place: Place, inputs: Inputs, each: Each, parts: list[Path], epochs: Epochs, policy: Weights, folder: Path
) -> tuple[dict[str, float], int]:
    """Score the held-out pairs with the policy and compare with the reference's log-probs; one row a pair on disk.

    Returns:
        the metrics, and the peak memory of the largest actor.
    """
    import_ahead(place, "torch", "dpo.step")  # for `measure_window`, while the policy is loaded
    scores = score_sequences(place, inputs, parts, policy, "evaluate", EVALUATED)
    order, ours = Order(place.config.run.seed, None), folder / "policy"
    write_epoch(each, parts, scores.cache, order, place.config.train.batch_pairs, ours)
    windows = sorted(ours.glob(run_files.WINDOWS))
    items = [
        {"number": number, "ours": str(path), "theirs": epochs.feed.held_out[number]}
        for number, path in enumerate(windows)
    ]
    mixture = for_evaluation(place.config.mixture, policy.baseline)
    found = sorted(each(items, measure_window, folder=str(folder), mixture=mixture), key=lambda row: row["number"])
    sums: dict[str, float] = {}
    for step in (step for row in found for step in json.loads(row["sums"])):
        for name, value in step.items():
            sums[name] = sums.get(name, 0.0) + value
    pairs = sum(row["pairs"] for row in found)
    shutil.rmtree(ours)
    return {f"eval/{name}": value / pairs for name, value in sums.items()}, scores.peak_bytes


def _answer(
    place: Place, inputs: Inputs, parts: list[Path], policies: Trained, during: During, folder: Path
) -> dict[str, Any]:
    """Greedy answers of both models, each prompt once, and how often they are a completion of the pair."""
    identities, prompts = held_out_prompts(parts, place.config.evaluate.generate_prompts)
    answers = {name: _generate(place, inputs, prompts, model, name) for name, model in policies._asdict().items()}
    tokenizer = inputs.tokenizer
    decode = partial(tokenizer.decode, skip_special_tokens=True)
    written = as_written(identities, inputs.files, place.config.data)
    with (folder / run_files.ANSWERS).open("w", encoding="utf-8") as out:
        for number, pair in enumerate(prompts):
            texts = {name: decode(ids) for name, ids in pair.items()}
            texts |= written.get(identities[number], {})  # without what the template puts around them
            given: dict[str, Any] = {name: decode(found[number]) for name, found in answers.items()}
            meanwhile = during.get(str(identities[number]))
            if meanwhile:
                given["during"] = {step: decode(ids) for step, ids in meanwhile.items()}
            out.write(json.dumps({**texts, **given}, ensure_ascii=False) + "\n")
    rates: dict[str, Any] = {"prompts": len(prompts)}
    for name, found in answers.items():
        rates[name] = {
            side: sum(
                ids == before_end(pair[side], tokenizer.eos_token_id) for ids, pair in zip(found, prompts, strict=True)
            )
            / len(prompts)
            for side in ("chosen", "rejected")
        }
    return rates


def _generate(
    place: Place, inputs: Inputs, prompts: list[dict[str, list[int]]], model: Weights, when: str
) -> list[list[int]]:
    config = place.config.reference
    # Prompts of one length together: they pad each other less.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]["prompt"]))
    chunks = [order[i : i + PROMPTS_AT_ONCE] for i in range(0, len(order), PROMPTS_AT_ONCE)]
    items = [{"numbers": chunk, "prompts": [prompts[i]["prompt"] for i in chunk]} for chunk in chunks]
    options = {
        "folder": str(model.folder),
        "worn": model.worn,
        "dtype": place.config.train.dtype,
        "max_new_tokens": place.config.evaluate.max_new_tokens,
        "eos_id": inputs.tokenizer.eos_token_id,
        "pad_id": pad_id(inputs.tokenizer),
        "device": device_of(config.cpus_per_actor, config.actors, config.gpus_per_actor),
    }
    answers: dict[int, list[int]] = {}
    place.terminal.live("evaluate", f"{len(prompts)} prompts to answer, {when} DPO: loading the model")
    for row in on_pool(place, items, answerer, options):
        answers.update(zip(row["numbers"], row["answers"], strict=True))
        said = f"{len(answers)} of {len(prompts)} prompts answered, {when} DPO"
        place.terminal.live("evaluate", said, len(answers), len(prompts))
    return [answers[i] for i in range(len(prompts))]


def _log(path: Path, step: int, metrics: dict[str, float]) -> None:
    """Add a row at the step of the weights to metrics.jsonl, in place of one from an earlier evaluation."""
    rows, _ = read_steps(path)
    kept = [row for row in rows if not (row["step"] == step and "eval/loss" in row)]
    rows = sorted([*kept, {"step": step, **metrics}], key=lambda row: row["step"])
    path.write_text("".join(to_json(row) + "\n" for row in rows), encoding="utf-8")
