"""The whole examination: prepare the data as a run would, look at the tokens, report. Nothing is trained."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from dpo.lm.model_config import ModelError, read_config
from dpo.text.render import TemplateMissing
from pipeline.config import Config, HuggingFacePolicy
from pipeline.doctor.checks import Patient, examine_data
from pipeline.doctor.findings import SEVERITIES, Finding, worst
from pipeline.doctor.nearness import near_prompts
from pipeline.doctor.numbers import Numbers, Tokens, Work, read_numbers, text_of, work_of
from pipeline.doctor.sizing import GIB, Shape, estimate, forward_flops, from_config
from pipeline.doctor.template import examine_template
from pipeline.errors import InputError
from pipeline.hub import model_folder
from pipeline.place import Place
from pipeline.sources import data_files
from pipeline.store.artifacts import Artifact, write_atomically
from pipeline.store.repeats import find_repeats
from pipeline.store.tokens import place_of

GPU_TFLOPS = 150.0  # that a GPU is taken to reach in training; an H100 reaches more, an A100 about this
FACTS = dict[str, str]


class Report(NamedTuple):
    findings: list[Finding]  # the worst first
    facts: dict[str, FACTS]  # by topic
    train: Numbers
    held_out: Numbers
    work: Work | None
    max_length: int
    folder: Path

    @property
    def worst(self) -> str | None:
        return worst(self.findings)


def examine(config: Config) -> Report:
    """Look at all that `config` would train on; the report is written into `<run.dir>/<run.name>/doctor/`.

    Raises:
        InputError: there is nothing to look at: a file is missing, the tokenizer cannot be loaded.
    """
    from pipeline.doctor.page import write_page
    from pipeline.stages.cluster import disconnect
    from pipeline.stages.prepare import prepare

    place = Place(config)
    place.run_dir = place.run_dir / "doctor"  # beside what a run keeps, and without taking its name
    try:
        place.run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"run.dir: cannot write to {place.run_dir}: {error.strerror}. Name another folder.") from None
    data_files(place)
    try:
        with place.stage("prepare"):
            tokens = prepare(place, judge=False)
    except TemplateMissing as error:
        report = _without_template(place, str(error))
    else:
        with place.stage("examine"):
            report = _report(place, tokens)
            place.terminal.say(f"{report.train.pairs:,} pairs and the template looked at")
    finally:
        disconnect()
    write_page(report, config.run.name)
    write_atomically(report.folder / "doctor.json", json.dumps(_plain(report), indent=2, ensure_ascii=False) + "\n")
    return report


def _without_template(place: Place, said: str) -> Report:
    finding = Finding("no-template", "error", "messages, and no chat template to render them", said, "Give one.")
    none = read_numbers([], Tokens(None, 0, None))
    return Report([finding], {}, none, none, None, place.config.data.max_length, place.run_dir)


def _report(place: Place, tokens: Artifact) -> Report:
    tokenizer, config = place.tokenizer, place.config
    wanted = Tokens(tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    if wanted.unknown == wanted.eos:  # GPT-2 names one token for both, and its bytes know all text
        wanted = wanted._replace(unknown=None)
    train_parts, eval_parts = tokens.paths("train/"), tokens.paths("eval/")
    train, held_out = read_numbers(train_parts, wanted), read_numbers(eval_parts, wanted)
    patient = Patient(
        config,
        tokenizer,
        tokens.counts,
        _first_rejected(place.run_dir / "rejected.jsonl"),
        train,
        held_out,
        find_repeats(train_parts),
        near_prompts(eval_parts, train_parts),
        _Rows(place, [*train_parts, *eval_parts]),
    )
    findings = examine_data(patient)
    if tokens.counts["chat"]:
        findings += examine_template(tokenizer, config.tokenizer.template_options, tokens.counts)
    work = work_of(train)
    facts = {"data": _data_facts(tokens.counts, train, held_out), "tokens": _work_facts(work, train)}
    try:
        facts["job"] = _job_facts(place, train, work)
    except (ModelError, InputError) as error:
        findings.append(Finding("model", "error", "model, tokenizer and data do not fit", str(error), "As it says."))
    findings.sort(key=lambda finding: -SEVERITIES.index(finding.severity))
    return Report(findings, facts, train, held_out, work, config.data.max_length, place.run_dir)


def _first_rejected(path: Path) -> dict[str, list[str]]:
    """The first rejections of each kind."""
    found: dict[str, list[str]] = {}
    with path.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            entry = json.loads(line)
            shown = found.setdefault(entry["kind"], [])
            if len(shown) < 3:
                where = f"line {entry['line']}" if "line" in entry else f"row {entry['row']}"
                shown.append(f"{Path(entry['file']).name} {where}: {entry['reason']}")
    return found


class _Rows:
    """A row id -> where it stands and how it reads. Parts are found by the range of their ids."""

    def __init__(self, place: Place, parts: list[Path]):
        self.tokenizer, self.files, self.parts = place.tokenizer, data_files(place), parts

    def __call__(self, identity: int) -> str:
        file, _, _ = place_of(identity)
        prefix = f"{file:06}-"
        for part in (part for part in self.parts if part.name.startswith(prefix)):
            table = pq.read_table(part, filters=pc.field("row_id") == identity)
            if table.num_rows:
                (row,) = table.to_pylist()
                where = f"line {row['line']}" if row["byte"] >= 0 else f"row {row['line']}"
                asked = text_of(self.tokenizer, row["prompt_ids"], tail=True)
                said = row["chosen_ids"]  # without the end token, which is ours
                answer = text_of(self.tokenizer, said[:-1] if said[-1:] == [self.tokenizer.eos_token_id] else said)
                return f"{Path(self.files[file].path).name} {where}: {asked!r} | {answer!r}"
        raise KeyError(identity)


def _data_facts(counts: dict[str, Any], train: Numbers, held_out: Numbers) -> FACTS:
    prompts, groups = len(np.unique(train.prompt_hash)), max(1, len(np.unique(train.prompt_hash)))
    facts = {
        "pairs read": f"{counts['read']:,}",
        "rejected": f"{counts['rejected']:,}"
        + "".join(f", {number:,} {kind}" for kind, number in counts["reasons"].items()),
        "training pairs": f"{train.pairs:,} over {prompts:,} prompts ({train.pairs / groups:.1f} a prompt)",
        "held-out pairs": f"{held_out.pairs:,}" if held_out.pairs else "none (data.eval)",
    }
    for side in ("prompt", "chosen", "rejected"):
        found = getattr(train, side)
        if len(found):
            middle, most = np.quantile(found, [0.5, 0.9])
            facts[f"tokens of {side}"] = f"median {middle:,.0f}, 90 % up to {most:,.0f}, longest {found.max():,}"
    return facts


def _work_facts(work: Work, train: Numbers) -> FACTS:
    if not train.pairs:
        return {}
    return {
        "an epoch": f"{work.logical:,} tokens, prompts counted with each answer",
        "prompts are": f"{2 * int(train.prompt.sum()) / work.logical:.1%} of them",
        "padded": f"{work.padded:,} where 8 pairs are padded to the longest: {work.padded / work.logical - 1:.1%} more",
        "a prompt once a pair": f"{work.shared:,}: {work.share(work.shared):.1%} saved (train.share_prompts)",
        "a prompt once at all": f"{work.grouped:,}: {work.share(work.grouped):.1%} saved (grouped; scoring does this)",
    }


def _job_facts(place: Place, train: Numbers, work: Work) -> FACTS:
    """Steps, memory and time of the configured run."""
    config, policy = place.config, place.config.policy
    steps = -(-train.pairs // config.train.batch_pairs)
    facts = {"optimizer steps": f"{steps * config.train.epochs:,} of up to {config.train.batch_pairs} pairs"}
    if policy.path is not None:
        folder = model_folder(policy.path, "policy.path")
        model = read_config(folder)
        place.check_model(model, str(folder))
    elif isinstance(policy, HuggingFacePolicy):
        model = policy.config or {}
        place.check_model(model, "policy.config")
    else:
        from pipeline.stages.start import x_transformers_config

        model = x_transformers_config(place, policy)
    try:
        shape = from_config(model)
    except KeyError as error:
        return {**facts, "memory and time": f"not estimated: the model's config names its sizes otherwise ({error})"}
    return facts | _estimates(config, shape, train, work) if train.pairs else facts


def _estimates(config: Config, shape: Shape, train: Numbers, work: Work) -> FACTS:
    workers, gpus = config.cluster.most_workers, config.cluster.gpus_per_worker
    tokens = min(config.train.micro_batch_tokens, int((train.prompt + train.chosen + train.rejected).sum()))
    completions = (int(train.chosen.sum()) + int(train.rejected.sum())) / work.shared
    memory = estimate(
        shape, config.deepspeed.stage, workers, tokens, round(tokens * completions),
        config.train.activation_checkpointing, config.train.dtype == "float32",
    )  # fmt: skip
    prompt, answer = float(train.prompt.mean()), float((train.chosen.mean() + train.rejected.mean()) / 2)
    forward = forward_flops(shape, prompt, answer) * train.pairs
    flops = forward * (3 * config.train.epochs + 1)  # forward and backward an epoch, and the reference once
    if gpus:
        rate, what = GPU_TFLOPS * workers, f"{workers} GPU(s) at {GPU_TFLOPS:g} TFLOP/s each"
    else:
        rate = _tflops_here() * workers / max(1, torch.get_num_threads()) * config.cluster.cpus_per_worker
        what = f"{workers} worker(s) on this CPU, {rate * 1000:.0f} GFLOP/s as measured"
    device = "GPU" if gpus else "worker"
    return {
        "model": f"{shape.parameters / 1e6:,.1f} M parameters, {shape.layers} layers, hidden size {shape.hidden}",
        f"memory a {device}": f"about {memory.total / GIB:.1f} GiB: states {memory.states / GIB:.1f}, activations "
        f"{memory.activations / GIB:.1f}, logits {memory.logits / GIB:.1f} (ZeRO {config.deepspeed.stage}, "
        f"{config.train.dtype}); keep a fifth free",
        "time": f"roughly {_clock(flops / (rate * 1e12))}: {flops / 1e15:,.3g} PFLOP on {what}",
    }


def _tflops_here() -> float:
    """What a matrix product reaches on all threads of this machine."""
    a = torch.randn(768, 768)
    torch.mm(a, a)
    count, began = 0, time.monotonic()
    while time.monotonic() - began < 0.5:
        torch.mm(a, a)
        count += 1
    return count * 2 * 768**3 / (time.monotonic() - began) / 1e12


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _plain(report: Report) -> dict[str, Any]:
    return {"findings": [finding._asdict() for finding in report.findings], "facts": report.facts}
