"""What may silently ruin a run, looked for in the tokens that it would be trained on."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from pipeline.config import Config
from pipeline.data.rejections import NOT_A_FAULT
from pipeline.data.repeats import Repeats
from pipeline.doctor.findings import Example, Finding, RowText, graded
from pipeline.doctor.nearness import Near
from pipeline.doctor.numbers import Numbers, work_of

EXAMPLES = 3


class Examined(NamedTuple):
    """All that the checks look at."""

    config: Config
    tokenizer: Any
    counts: dict[str, Any]  # of the stage prepare
    rejected: dict[str, list[RowText]]  # kind -> the first such rows, with the reason as their text
    train: Numbers
    held_out: Numbers
    repeats: Repeats  # of the training pairs
    near: list[Near]
    row: Callable[[int], RowText]  # by row id

    def finding(
        self, name: str, severity: str, rows: np.ndarray, title: str, detail: str, fix: str, of: Numbers | None = None
    ) -> list[Finding]:
        """One about the marked pairs, with the first of them; none where none is marked.

        Args:
            title: what so many pairs have.
            of: the pairs that may be marked; training's where it is left out.
        """
        rows = rows.astype(bool)
        if not rows.any():
            return []
        examples = tuple(
            Example(self.row(int(identity))) for identity in islice((of or self.train).row_id[rows], EXAMPLES)
        )
        number = int(rows.sum())
        return [Finding(name, severity, f"{number:,} {title}", detail, fix, number, float(rows.mean()), examples)]


def examine_data(examined: Examined) -> list[Finding]:
    """Every check in turn; those that find nothing say nothing."""
    checks = (_rejected, _mixed, _repeats, _boundary, _begins, _ends, _control, _unknown, _truncation)
    checks += (_length_bias, _leaks, _budget, _sharing)
    return [finding for check in checks for finding in check(examined)]


WHY = {
    "same sides": (
        "pairs have the same answer on both sides",
        "They hold no preference; find out how they came about.",
    ),
    "tie": ("rows hold a tie", "Nothing to do: they are left out."),
    "same once cut": ("pairs have the same answer on both sides once they are cut", "Raise data.max_length."),
    "too long": (
        "pairs are too long",
        'Raise data.max_length, or let data.truncation cut them ("keep_end" also cuts prompts).',
    ),
    "damaged file": (
        "files are damaged, and what follows there is lost",
        "Copy them again from where they come from: how many rows are lost nobody can tell.",
    ),
    "template": ("rows do not go through the chat template", "See what is said of the template."),
    "duplicate": ("repeated pairs are dropped", "As data.duplicates asks."),
    "contradiction": ("contradicting pairs are dropped", "As data.contradictions asks."),
}


def _rejected(examined: Examined) -> list[Finding]:
    counts, found = examined.counts, []
    bad = counts["rejected"] - sum(counts["reasons"].get(kind, 0) for kind in NOT_A_FAULT)
    too_many = bad > examined.config.data.max_rejected_fraction * counts["read"]
    for kind, number in counts["reasons"].items():
        title, fix = WHY.get(
            kind, (f"rows cannot be used: {kind}", "Mend the rows, or map their columns (data.columns).")
        )
        severity = "error" if too_many or kind == "damaged file" else "warning"
        severity = "note" if kind in NOT_A_FAULT else severity
        limit = f" More than data.max_rejected_fraction = {examined.config.data.max_rejected_fraction} allows in all."
        detail = "All are in rejected.jsonl, with file, line, byte and reason."
        found.append(
            Finding(
                f"rejected-{kind.replace(' ', '-')}",
                severity,
                f"{number:,} {title}",
                detail + (limit if too_many and severity == "error" else ""),
                fix,
                number,
                number / counts["read"],
                tuple(map(Example, examined.rejected.get(kind, ())[:EXAMPLES])),
            )
        )
    if not counts["train"]:
        what = "Name other data." if not counts["read"] else "See what is said of the rejected rows."
        found.append(
            Finding("nothing-to-train-on", "error", "no pair is left to train on", "A run would stop here.", what, 0)
        )
    return found


def _mixed(examined: Examined) -> list[Finding]:
    chat, strings = examined.counts["chat"], examined.counts["strings"]
    if not chat or not strings:
        return []
    return [
        Finding(
            "mixed-forms",
            "warning",
            f"{chat:,} pairs are messages and {strings:,} are plain strings",
            "Messages go through the chat template, strings do not: the model sees two formats. A string row with a "
            "system text is read as messages.",
            "Give all rows as messages, or all as strings.",
            min(chat, strings),
            min(chat, strings) / (chat + strings),
        )
    ]


def _repeats(examined: Examined) -> list[Finding]:
    repeats, data, found = examined.repeats, examined.config.data, []
    if data.duplicates == "keep":
        found += _pairs_of_rows(
            examined,
            "duplicates",
            0.01,
            repeats.duplicates,
            repeats.first,
            "training pairs repeat an earlier one",
            "Prompt and both answers are the same, token for token; each repeat counts as much as another pair.",
            'data.duplicates = "drop" keeps the first of each.',
        )
    if data.contradictions == "keep":
        found += _pairs_of_rows(
            examined,
            "contradictions",
            0.005,
            repeats.contradictions,
            repeats.counterpart,
            "training pairs stand there with the preference turned round as well",
            "Annotators disagreed; such pairs pull the policy both ways, and no model gets more than half right.",
            'data.contradictions = "drop" leaves all of them out; or raise loss.label_smoothing.',
        )
    return found


def _pairs_of_rows(
    examined: Examined, name: str, limit: float, rows: np.ndarray, others: np.ndarray, title: str, detail: str, fix: str
) -> list[Finding]:
    """A finding whose examples name a row and the other one that it belongs to."""
    if not len(rows):
        return []
    share = len(rows) / max(1, examined.train.pairs)
    examples = [
        Example(examined.row(int(row)), examined.row(int(other)))
        for row, other in islice(zip(rows, others, strict=True), EXAMPLES)
    ]
    found = Finding(
        name, graded(share, limit), f"{len(rows):,} {title}", detail, fix, len(rows), share, tuple(examples)
    )
    return [found]


def _boundary(examined: Examined) -> list[Finding]:
    apart = examined.train.apart
    return examined.finding(
        "boundary",
        graded(apart, 0.01),
        apart,
        "pairs are tokenized differently joined than apart",
        "A token would reach from the prompt into the answer, so the two are encoded apart. At inference the model "
        "sees the prompt's tokens alone, which is what it is trained on here; a trainer that encodes the joined text "
        "scores other tokens.",
        "Begin every answer, or end every prompt, with a blank or a line break of its own (messages: in the template).",
    )


def _begins(examined: Examined) -> list[Finding]:
    train, bos = examined.train, examined.tokenizer.bos_token_id
    if bos is None or not train.pairs:
        return []
    adds = examined.tokenizer("a")["input_ids"][:1] == [bos]
    cases = [
        ("double-begin", "error", train.begins > 1, "prompts begin with more than one begin token",
         "Template and tokenizer both add it; the model has never seen that.",
         "Remove it from the template or from the texts."),
        ("missing-begin", "warning", (train.begins == 0) & adds,
         "prompts have no begin token, and the tokenizer adds one to plain text",
         "The model was trained with it; the chat template leaves it out.",
         "Put {{ bos_token }} at the beginning of the chat template."),
        ("inner-begin", "error", train.inner_begins > 0, "answers hold a begin token",
         "It stands where text goes on; the model learns to begin anew in the middle.",
         "Remove it from the texts."),
    ]  # fmt: skip
    return [finding for case in cases for finding in examined.finding(*case)]


def _ends(examined: Examined) -> list[Finding]:
    if examined.counts["several_turns"]:  # whose turns may end with it
        return []
    return examined.finding(
        "double-end",
        "warning",
        examined.train.double_ends > 0,
        "pairs have an answer with more than one end token",
        f"{examined.tokenizer.eos_token!r} stands in the text of the answer, before the one at its end: generation "
        "stops at the first, and what follows is trained all the same.",
        "Remove it from the texts.",
    )


def _control(examined: Examined) -> list[Finding]:
    return examined.finding(
        "control-tokens",
        "warning",
        examined.train.control,
        "pairs spell out a control token in their text",
        "The tokenizer turns it into the token itself, so that a text may end a turn or open one.",
        "Remove such strings from the texts, unless they are meant (a template applied beforehand).",
    )


def _unknown(examined: Examined) -> list[Finding]:
    share = examined.train.unknown.sum() / max(1, work_of(examined.train).shared)
    return examined.finding(
        "unknown-tokens",
        graded(share, 0.001, 0.05),
        examined.train.unknown > 0,
        "pairs have unknown tokens",
        f"They are {share:.2%} of all tokens. The tokenizer has none for some of the text, and the model sees the same "
        "one for all of it.",
        "Use the tokenizer that belongs to the model, or clean the text.",
    )


def _truncation(examined: Examined) -> list[Finding]:
    train, data = examined.train, examined.config.data
    if not train.pairs:
        return []
    holds, dropped = int(np.quantile(train.longest + train.cut, 0.99)), examined.counts["reasons"].get("too long", 0)
    known = f"99 % of the pairs have up to {holds:,}."
    fix = f'data.max_length = {holds} would leave 1 % cut; or data.truncation = "drop".'
    if dropped:  # nobody knows how long those are
        known = f"The {dropped:,} pairs that were rejected as too long come back where there is more room."
        fix = 'Raise data.max_length and look again; or data.truncation = "drop".'
    what, ends = "prompts lose their beginning", ""
    if data.truncation != "keep_end":
        what, ends = "answers lose their end", ", and with it the token that ends them"
    return examined.finding(
        "truncation",
        graded(train.cut > 0, 0.02, 0.25),
        train.cut > 0,
        f"pairs are cut to fit data.max_length = {data.max_length}",
        f"Their {what}{ends}; {int(train.cut.sum()):,} tokens in all. {known}",
        fix,
    )


def _length_bias(examined: Examined) -> list[Finding]:
    train = examined.train
    if train.pairs < 50:
        return []
    longer = float(((train.chosen > train.rejected) + 0.5 * (train.chosen == train.rejected)).mean())
    deviation = abs(longer - 0.5)
    if deviation < 0.05 or deviation < 3 * 0.5 / train.pairs**0.5:
        return []
    which, share = ("longer", longer) if longer > 0.5 else ("shorter", 1 - longer)
    shift = int(np.median(train.chosen - train.rejected))
    return [
        Finding(
            "length-bias",
            "warning" if deviation >= 0.1 else "note",
            f"the chosen answer is the {which} one in {share:.0%} of the pairs",
            f"Chosen minus rejected has a median of {shift:,} tokens: length alone tells the preferred answer "
            f"{share:.0%} of the time, and DPO learns that first.",
            'Watch the length of answers in evaluation; loss.kind = "sigmoid_norm" or "simpo", or loss.ld_alpha, weigh '
            "length down.",
            None,
            share,
        )
    ]


def _leaks(examined: Examined) -> list[Finding]:
    train, held_out = examined.train, examined.held_out
    found = examined.finding(
        "prompts-on-both-sides",
        "error",
        np.isin(held_out.prompt_hash, train.prompt_hash),
        "held-out pairs have a prompt that training has too",
        "Their accuracy tells what was memorised.",
        "Remove them from one side, or hold out by prompt: data.eval = 0.05.",
        held_out,
    )
    if examined.near:
        pairs = [Example(examined.row(n.held_out), examined.row(n.trained), n.share) for n in examined.near[:EXAMPLES]]
        number = len(examined.near)
        found.append(
            Finding(
                "near-duplicates",
                "warning",
                f"{number:,} held-out prompts are nearly a training prompt",
                "At least 80 % of their runs of six tokens stand in one training prompt.",
                "Remove them from one side.",
                number,
                number / max(1, len(np.unique(held_out.prompt_hash))),
                tuple(pairs),
            )
        )
    return found


def _budget(examined: Examined) -> list[Finding]:
    train, budget = examined.train, examined.config.train.micro_batch_tokens
    computed = train.prompt + train.chosen + train.rejected
    most = int(computed.max(initial=0))
    return examined.finding(
        "above-budget",
        graded(computed > budget, 0.05),
        computed > budget,
        f"pairs are larger than train.micro_batch_tokens = {budget:,}",
        f"Each runs alone; the largest has {most:,} tokens, and that is what memory must hold.",
        f"train.micro_batch_tokens = {most}, or a smaller data.max_length.",
    )


def _sharing(examined: Examined) -> list[Finding]:
    work = work_of(examined.train)
    saved = work.share(work.shared)
    if examined.config.train.share_prompts or saved < 0.1:
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
