"""What may silently ruin a run, looked for in the tokens that it would be trained on."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from pipeline.config import Config
from pipeline.doctor.findings import Finding, graded
from pipeline.doctor.nearness import Near
from pipeline.doctor.numbers import Numbers, work_of
from pipeline.store.repeats import Repeats

EXAMPLES = 3


class Patient(NamedTuple):
    """All that the checks look at."""

    config: Config
    tokenizer: Any
    counts: dict[str, Any]  # of the stage prepare
    rejected: dict[str, list[str]]  # kind -> the first such rows
    train: Numbers
    held_out: Numbers
    repeats: Repeats  # of the training pairs
    near: list[Near]
    row: Callable[[int], str]  # a row id -> where it stands and how it reads

    def examples(self, ids: Any) -> tuple[str, ...]:
        return tuple(self.row(int(identity)) for identity in islice(ids, EXAMPLES))


def examine_data(patient: Patient) -> list[Finding]:
    """Every check in turn; those that find nothing say nothing."""
    checks = (_rejected, _repeats, _boundary, _begins, _ends, _control, _unknown, _truncation)
    checks += (_length_bias, _leaks, _budget, _sharing)
    return [finding for check in checks for finding in check(patient)]


WHY = {
    "same sides": (
        "pairs have the same answer on both sides",
        "They hold no preference; find out how they came about.",
    ),
    "tie": ("rows hold a tie", "Nothing to do: they are left out."),
    "too long": ("pairs are too long", "Raise data.max_length, or let data.truncation cut them."),
    "template": ("rows do not go through the chat template", "See what is said of the template."),
    "duplicate": ("repeated pairs are dropped", "As data.duplicates asks."),
    "contradiction": ("contradicting pairs are dropped", "As data.contradictions asks."),
}
ASKED_FOR = ("tie", "duplicate", "contradiction")


def _rejected(patient: Patient) -> list[Finding]:
    counts, found = patient.counts, []
    bad = counts["rejected"] - sum(counts["reasons"].get(kind, 0) for kind in ASKED_FOR)
    too_many = bad > patient.config.data.max_rejected_fraction * counts["read"]
    for kind, number in counts["reasons"].items():
        title, fix = WHY.get(
            kind, (f"rows cannot be used: {kind}", "Mend the rows, or map their columns (data.columns).")
        )
        severity = "note" if kind in ASKED_FOR else "error" if too_many else "warning"
        limit = f" More than data.max_rejected_fraction = {patient.config.data.max_rejected_fraction} allows in all."
        detail = "All are in rejected.jsonl, with file, line, byte and reason."
        found.append(
            Finding(
                f"rejected-{kind.replace(' ', '-')}",
                severity,
                f"{number:,} {title}",
                detail + (limit if severity == "error" else ""),
                fix,
                number,
                number / counts["read"],
                tuple(patient.rejected.get(kind, ())[:EXAMPLES]),
            )
        )
    if not counts["train"]:
        what = "Name other data." if not counts["read"] else "See what is said of the rejected rows."
        found.append(Finding("nothing-to-train-on", "error", "no pair is left to train on", "", what, 0))
    return found


def _repeats(patient: Patient) -> list[Finding]:
    repeats, total, found = patient.repeats, max(1, patient.train.pairs), []
    if len(repeats.duplicates) and patient.config.data.duplicates == "keep":
        number = len(repeats.duplicates)
        found.append(
            Finding(
                "duplicates",
                graded(number / total, 0.01),
                f"{number:,} training pairs repeat an earlier one",
                "Prompt and both answers are the same, token for token; each repeat counts as much as another pair.",
                'data.duplicates = "drop" keeps the first of each.',
                number,
                number / total,
                tuple(
                    f"{patient.row(int(row))} = {patient.row(int(first)).partition(': ')[0]}"
                    for row, first in islice(zip(repeats.duplicates, repeats.first, strict=True), EXAMPLES)
                ),
            )
        )
    if len(repeats.contradictions) and patient.config.data.contradictions == "keep":
        number = len(repeats.contradictions)
        found.append(
            Finding(
                "contradictions",
                graded(number / total, 0.005),
                f"{number:,} training pairs stand there with the preference turned round as well",
                "Annotators disagreed; such pairs pull the policy both ways, and no model gets more than half right.",
                'data.contradictions = "drop" leaves all of them out; or raise loss.label_smoothing.',
                number,
                number / total,
                tuple(
                    f"{patient.row(int(row))} ≠ {patient.row(int(other)).partition(': ')[0]}"
                    for row, other in islice(zip(repeats.contradictions, repeats.counterpart, strict=True), EXAMPLES)
                ),
            )
        )
    return found


def _boundary(patient: Patient) -> list[Finding]:
    apart = patient.train.apart.astype(bool)
    if not apart.any():
        return []
    share = float(apart.mean())
    return [
        Finding(
            "boundary",
            graded(share, 0.01),
            f"{int(apart.sum()):,} pairs are tokenized differently joined than apart",
            "A token would reach from the prompt into the answer, so the two are encoded apart. At inference the model "
            "sees the prompt's tokens alone, which is what it is trained on here; a trainer that encodes the joined "
            "text scores other tokens.",
            "Begin every answer with a blank or a new line, or give messages instead of strings.",
            int(apart.sum()),
            share,
            patient.examples(patient.train.row_id[apart]),
        )
    ]


def _begins(patient: Patient) -> list[Finding]:
    train, bos, found = patient.train, patient.tokenizer.bos_token_id, []
    if bos is None or not train.pairs:
        return []
    adds = patient.tokenizer("a")["input_ids"][:1] == [bos]
    cases = [
        ("double-begin", "error", train.begins > 1, "prompts begin with more than one begin token",
         "Template and tokenizer both add it; the model has never seen that.",
         "Remove it from the template or from the texts."),
        ("missing-begin", "warning", train.begins == 0 if adds else np.zeros(train.pairs, bool),
         "prompts have no begin token, and the tokenizer adds one to plain text",
         "The model was trained with it; the chat template leaves it out.",
         "Put {{ bos_token }} at the beginning of the chat template."),
        ("inner-begin", "error", train.inner_begins > 0, "answers hold a begin token",
         "It stands where text goes on; the model learns to begin anew in the middle.",
         "Remove it from the texts."),
    ]  # fmt: skip
    for name, severity, rows, title, detail, fix in cases:
        if rows.any():
            number = int(rows.sum())
            examples = patient.examples(train.row_id[rows])
            found.append(
                Finding(name, severity, f"{number:,} {title}", detail, fix, number, float(rows.mean()), examples)
            )
    return found


def _ends(patient: Patient) -> list[Finding]:
    rows = patient.train.double_ends > 0
    if not rows.any() or patient.counts["several_turns"]:
        return []
    number = int(rows.sum())
    return [
        Finding(
            "double-end",
            "warning",
            f"{number:,} pairs have an answer with more than one end token",
            f"{patient.tokenizer.eos_token!r} stands in the text of the answer, before the one at its end: generation "
            "stops at the first, and what follows is trained all the same.",
            "Remove it from the texts.",
            number,
            float(rows.mean()),
            patient.examples(patient.train.row_id[rows]),
        )
    ]


def _control(patient: Patient) -> list[Finding]:
    rows = patient.train.control.astype(bool)
    if not rows.any():
        return []
    number = int(rows.sum())
    return [
        Finding(
            "control-tokens",
            "warning",
            f"{number:,} pairs spell out a control token in their text",
            "The tokenizer turns it into the token itself, so that a text may end a turn or open one.",
            "Remove such strings from the texts, unless they are meant (a template applied beforehand: then leave "
            "tokenizer.chat_template out and give strings).",
            number,
            float(rows.mean()),
            patient.examples(patient.train.row_id[rows]),
        )
    ]


def _unknown(patient: Patient) -> list[Finding]:
    unknown = int(patient.train.unknown.sum())
    if not unknown:
        return []
    work = work_of(patient.train)
    share = unknown / work.shared
    rows = patient.train.unknown > 0
    return [
        Finding(
            "unknown-tokens",
            graded(share, 0.001, 0.05),
            f"{share:.2%} of the tokens are unknown",
            "The tokenizer has no token for some of the text, and the model sees the same one for all of it.",
            "Use the tokenizer that belongs to the model, or clean the text.",
            int(rows.sum()),
            float(rows.mean()),
            patient.examples(patient.train.row_id[rows]),
        )
    ]


def _truncation(patient: Patient) -> list[Finding]:
    train, data = patient.train, patient.config.data
    rows = train.cut > 0
    if not rows.any():
        return []
    whole = train.longest + train.cut
    holds = int(np.quantile(whole, 0.99))
    what = "prompts lose their beginning" if data.truncation == "keep_end" else "answers lose their end"
    ends = "" if data.truncation == "keep_end" else ", and with it the token that ends them"
    return [
        Finding(
            "truncation",
            graded(float(rows.mean()), 0.02, 0.25),
            f"{int(rows.sum()):,} pairs are cut to fit data.max_length = {data.max_length}",
            f"Their {what}{ends}; {int(train.cut.sum()):,} tokens in all. 99 % of the pairs have up to {holds:,}.",
            f'data.max_length = {holds} would leave 1 % cut; or data.truncation = "drop".',
            int(rows.sum()),
            float(rows.mean()),
            patient.examples(train.row_id[rows]),
        )
    ]


def _length_bias(patient: Patient) -> list[Finding]:
    train = patient.train
    if train.pairs < 50:
        return []
    longer = float(((train.chosen > train.rejected) + 0.5 * (train.chosen == train.rejected)).mean())
    deviation = abs(longer - 0.5)
    if deviation < 0.05 or deviation < 3 * 0.5 / train.pairs**0.5:
        return []
    which, share = ("longer", longer) if longer > 0.5 else ("shorter", 1 - longer)
    shift = int(np.median(train.chosen) - np.median(train.rejected))
    return [
        Finding(
            "length-bias",
            "warning" if deviation >= 0.1 else "note",
            f"the chosen answer is the {which} one in {share:.0%} of the pairs",
            f"Its median is {abs(shift):,} tokens {'longer' if shift > 0 else 'shorter'}: length alone tells the "
            f"preferred answer {share:.0%} of the time, and DPO learns that first.",
            'Watch the length of answers in evaluation; loss.kind = "sigmoid_norm" or "simpo", or loss.ld_alpha, weigh '
            "length down.",
            None,
            share,
        )
    ]


def _leaks(patient: Patient) -> list[Finding]:
    train, held_out, found = patient.train, patient.held_out, []
    both = np.isin(held_out.prompt_hash, train.prompt_hash)
    if both.any():
        number = int(both.sum())
        found.append(
            Finding(
                "prompts-on-both-sides",
                "error",
                f"{number:,} held-out pairs have a prompt that training has too",
                "Their accuracy tells what was memorised.",
                "Remove them from one side, or hold out by prompt: data.eval = 0.05.",
                number,
                float(both.mean()),
                patient.examples(held_out.row_id[both]),
            )
        )
    if patient.near:
        number = len(patient.near)
        found.append(
            Finding(
                "near-duplicates",
                "warning",
                f"{number:,} held-out prompts are nearly a training prompt",
                "At least 80 % of their runs of six tokens stand in one training prompt.",
                "Remove them from one side.",
                number,
                number / max(1, len(np.unique(held_out.prompt_hash))),
                tuple(
                    f"{patient.row(n.held_out)} ~ {patient.row(n.trained)} ({n.share:.0%})"
                    for n in patient.near[:EXAMPLES]
                ),
            )
        )
    return found


def _budget(patient: Patient) -> list[Finding]:
    train, budget = patient.train, patient.config.train.micro_batch_tokens
    computed = train.prompt + train.chosen + train.rejected
    rows = computed > budget
    if not rows.any():
        return []
    number = int(rows.sum())
    return [
        Finding(
            "above-budget",
            graded(float(rows.mean()), 0.05),
            f"{number:,} pairs are larger than train.micro_batch_tokens = {budget:,}",
            f"Each runs alone; the largest has {int(computed.max()):,} tokens, and that is what memory must hold.",
            f"train.micro_batch_tokens = {int(computed.max())}, or a smaller data.max_length.",
            number,
            float(rows.mean()),
            patient.examples(train.row_id[rows]),
        )
    ]


def _sharing(patient: Patient) -> list[Finding]:
    work = work_of(patient.train)
    saved = work.share(work.shared)
    if patient.config.train.share_prompts or saved < 0.1:
        return []
    return [
        Finding(
            "sharing-off",
            "warning",
            f"train.share_prompts = false computes {saved:.0%} of the tokens twice",
            "The prompt is repeated for each of its two answers.",
            "Remove train.share_prompts = false.",
            None,
            saved,
        )
    ]
