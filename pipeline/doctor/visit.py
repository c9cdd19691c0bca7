"""The examination: prepare the data as a run would, check the tokens, write the report. Nothing is trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from dpo.lm.whole_folder import write_atomically
from dpo.text.render import TemplateMissing
from pipeline.claim import make_folders
from pipeline.cluster.connect import joined, missing_gpus
from pipeline.cluster.items import here, on_ray
from pipeline.cluster.machine import settled
from pipeline.config import Config
from pipeline.config.deepspeed import deepspeed_settings
from pipeline.data.rejections import place_of_row, where
from pipeline.data.repeats import find_repeats
from pipeline.data.sources import data_files, few_bytes
from pipeline.data.tokenizer import open_tokenizer
from pipeline.doctor.adapters import of_adapter
from pipeline.doctor.checks import Examined, examine_data
from pipeline.doctor.facts import Facts, data_facts, job_facts, work_facts
from pipeline.doctor.findings import SEVERITIES, Finding, Report, RowText, plain
from pipeline.doctor.nearness import near_prompts
from pipeline.doctor.numbers import Numbers, Tokens, read_numbers, text_of, work_of
from pipeline.doctor.page import write_page
from pipeline.doctor.rejected import EXAMPLES
from pipeline.doctor.template import examine_template
from pipeline.doctor.unread import unread
from pipeline.errors import InputError
from pipeline.models.asked import given_adapter, given_reference
from pipeline.models.cards import CARDS, Card, local_card
from pipeline.models.judged import refuse_untrainable
from pipeline.place import Place
from pipeline.record import Made, Record
from pipeline.stages.preflight import Inputs
from pipeline.stages.prepare import prepare
from pipeline.store import run_files
from pipeline.store.artifacts import Artifact
from pipeline.store.hub import model_folder
from pipeline.store.tokens import place_of


def examine(config: Config, card: str | None = None) -> Report:
    """Examine the data and settings of a configuration. Writes the report into `<run.dir>/<run.name>/doctor/`.

    Args:
        card: the name in `CARDS` of the GPUs that the run will have; None: this machine's.

    Raises:
        InputError: a folder cannot be written, a data file or deepspeed.config is wrong, or the tokenizer cannot be
            loaded.
    """
    here_settled = settled(config)
    for_card = here_settled if card is None else settled(config, memory=CARDS[card].memory)
    deepspeed_settings(for_card.train, for_card.deepspeed)  # refused here, as a run refuses it
    place, record = Place.of(here_settled, until="prepare"), Record()
    place = replace(place, run_dir=place.run_dir / run_files.DOCTOR)  # in the run's folder, without claiming its name
    make_folders(place.run_dir, place.workspace)
    files, tokenizer = data_files(config.data, place.workspace, place.run_dir), open_tokenizer(config)
    inputs = Inputs(files, tokenizer, None)  # the model is examined last: a wrong one is a finding
    small = few_bytes(files)
    try:
        with place.terminal.showing():
            tokens = record.stage(prepare, place, inputs, here if small else on_ray(place), judge=False)
    except TemplateMissing as error:
        report = _without_template(place, str(error))
    else:
        gpus = CARDS[card] if card is not None else local_card() if for_card.cluster.gpus_per_worker else None
        report = record.stage(examination, replace(place, config=for_card), inputs, tokens, gpus)
    finally:
        if not small:
            _leave_ray()
    write_page(report, config.run.name)
    content = json.dumps(plain(report), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(report.folder / "doctor.json", content + "\n")
    return report


def _leave_ray() -> None:
    from pipeline.cluster.connect import disconnect  # takes a second, which small files do not need

    disconnect()


def _without_template(place: Place, said: str) -> Report:
    title = "rows hold messages, but the tokenizer has no chat template"
    fix = 'Set tokenizer.chat_template to "chatml" or to a Jinja file.'
    none = read_numbers([], Tokens(None, 0, None))
    finding = Finding("no-template", "error", title, said, fix)
    return Report([finding], {}, none, none, None, place.config.data.max_length, place.run_dir)


def examination(place: Place, inputs: Inputs, tokens: Artifact, card: Card | None) -> Made[Report]:
    """Run all checks on the tokens, and collect facts about data, tokens and job."""
    tokenizer, config = inputs.tokenizer, place.config
    wanted = Tokens(tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    if wanted.unknown == wanted.eos:  # GPT-2 uses one token for both; its byte-level vocabulary has no unknown text
        wanted = wanted._replace(unknown=None)
    train_parts, eval_parts = tokens.paths("train/"), tokens.paths("eval/")
    train, held_out = read_numbers(train_parts, wanted), read_numbers(eval_parts, wanted)
    examined = Examined(
        config,
        tokenizer,
        tokens.counts,
        _first_of_each([place.run_dir / run_files.REJECTED]),
        _first_of_each(tokens.paths("noticed/")),
        train,
        held_out,
        find_repeats(train_parts),
        near_prompts(eval_parts, train_parts),
        _Rows(inputs, [*train_parts, *eval_parts]),
    )
    findings = examine_data(examined) + unread(tokens.counts, inputs.files)
    if tokens.counts["chat"]:
        findings += examine_template(tokenizer, config.tokenizer.template_options, tokens.counts)
    work = work_of(train)
    facts = {"data": data_facts(tokens.counts, train, held_out), "tokens": work_facts(work, train)}
    facts["job"], of_job = _job(place, inputs, train, card)
    findings += of_job
    if card is None and joined(config) is None:
        findings += _missing_gpus(config)
    findings.sort(key=lambda finding: -SEVERITIES.index(finding.severity))
    report = Report(findings, facts, train, held_out, work, config.data.max_length, place.run_dir)
    return Made(report, f"{train.pairs:,} pairs and the template examined")


def _job(place: Place, inputs: Inputs, train: Numbers, card: Card | None) -> tuple[Facts, list[Finding]]:
    """Facts about the job; findings where its model cannot be trained, or does not fit the data or the memory."""
    path, folder = place.config.policy.path, None
    try:
        if path is not None:
            folder = model_folder(path, "policy.path")
            refuse_untrainable(place, folder)
        given_adapter(place, folder)
        given_reference(place, folder, len(inputs.tokenizer))
    except InputError as error:
        fix = "Do what the sentence above says, or name another model in policy.path."
        return {}, [Finding("model", "error", "the policy's folder cannot be trained as it is", str(error), fix)]
    try:
        facts, findings = job_facts(place.config, inputs._replace(policy=folder), train, card)
        return facts, findings + of_adapter(place.config)
    except InputError as error:
        fix = "Use the model's own tokenizer (tokenizer.path), lower data.max_length, or correct policy.path."
        return {}, [Finding("model", "error", "model, tokenizer and data do not fit", str(error), fix)]


def _missing_gpus(config: Config) -> list[Finding]:
    said = missing_gpus(config)
    if said is None:
        return []
    title, fix = "this machine lacks GPUs that the run asks for", "Run it on a machine or a cluster that has them."
    return [Finding("missing-gpus", "note", title, said, fix)]


def _first_of_each(paths: list[Path]) -> dict[str, list[RowText]]:
    """Read the first rows of each kind, with their reasons or, where there is none, their beginning."""
    found: dict[str, list[RowText]] = {}
    for path in paths:
        with path.open(encoding="utf-8", newline="\n") as lines:
            for line in lines:
                entry = json.loads(line)
                shown = found.setdefault(entry["kind"], [])
                if len(shown) < EXAMPLES:
                    text = entry["excerpt"] if entry["reason"] == entry["kind"] else entry["reason"]
                    shown.append(RowText(entry["file"], where(entry), text))
    return found


class _Rows:
    """A row id -> the place and text of the row. Parts are found by the file number in their names."""

    def __init__(self, inputs: Inputs, parts: list[Path]):
        self.tokenizer, self.files, self.parts = inputs.tokenizer, inputs.files, parts

    def __call__(self, identity: int) -> RowText:
        file, _, _ = place_of(identity)
        prefix = f"{file:06}-"
        for part in (part for part in self.parts if part.name.startswith(prefix)):
            table = pq.read_table(part, filters=pc.field("row_id") == identity)
            if table.num_rows:
                return self._text(self.files[file].path, table.to_pylist()[0])
        raise KeyError(identity)

    def _text(self, path: str, row: dict[str, Any]) -> RowText:
        asked = text_of(self.tokenizer, row["prompt_ids"], tail=True)
        said = row["chosen_ids"]  # shown without the end token, which is not part of the row
        answer = text_of(self.tokenizer, said[:-1] if said[-1:] == [self.tokenizer.eos_token_id] else said)
        return RowText(path, where(place_of_row(row["line"], row["byte"])), f"{asked!r} | {answer!r}")
