"""Checks of the tokens that a run would be trained on, for faults that ruin training without an error message."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from pipeline.config import Config
from pipeline.data.repeats import Repeats
from pipeline.doctor.findings import Example, Finding, RowText, counted, graded
from pipeline.doctor.nearness import Near
from pipeline.doctor.noticed import noticed
from pipeline.doctor.numbers import Numbers, work_of
from pipeline.doctor.rejected import EXAMPLES, rejected


class Examined(NamedTuple):
    """The inputs of the checks."""

    config: Config
    tokenizer: Any
    counts: dict[str, Any]  # counts of the stage prepare
    rejected: dict[str, list[RowText]]  # kind -> the first rejected rows, with the reason as their text
    noticed: dict[str, list[RowText]]  # name of what was noticed -> the first such rows
    train: Numbers
    held_out: Numbers
    repeats: Repeats  # repeats among the training pairs
    near: list[Near]
    row: Callable[[int], RowText]  # row id -> the row

    def finding(
        self, name: str, severity: str, rows: np.ndarray, title: str, detail: str, fix: str, of: Numbers | None = None
    ) -> list[Finding]:
        """Make a finding about the marked pairs, with the first of them as examples. Empty if none is marked.

        Args:
            rows: true for each marked pair.
            title: the rest of the title, after the number of marked pairs.
            of: the pairs that `rows` is about; the training pairs by default.
        """
        rows = rows.astype(bool)
        if not rows.any():
            return []
        examples = tuple(
            Example(self.row(int(identity))) for identity in islice((of or self.train).row_id[rows], EXAMPLES)
        )
        number = int(rows.sum())
        return [Finding(name, severity, counted(number, title), detail, fix, number, float(rows.mean()), examples)]


def examine_data(examined: Examined) -> list[Finding]:
    """Run all checks and return their findings."""
    checks = (_mixed, _repeats, _boundary, _begins, _ends, _control, _unknown, _truncation)
    checks += (_length_bias, _leaks, _budget, _sharing)
    found = rejected(examined.counts, examined.rejected, examined.config.data.max_rejected_fraction)
    found += noticed(examined.counts, examined.noticed, examined.config, examined.tokenizer)
    return found + [finding for check in checks for finding in check(examined)]


def _mixed(examined: Examined) -> list[Finding]:
    chat, strings = examined.counts["chat"], examined.counts["strings"]
    if not chat or not strings:
        return []
    return [
        Finding(
            "mixed-forms",
            "warning",
            f"{chat:,} pairs are messages and {strings:,} are plain strings",
            "The chat template is applied to messages but not to strings, so the model sees two formats.",
            "Write all rows as messages, or all rows as strings.",
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
            "training pairs are exact repeats of an earlier pair",
            "Prompt and both answers are the same, token for token. Each repeat adds to the weight of its pair.",
            'Set data.duplicates = "drop" to keep only the first of each.',
        )
    if data.contradictions == "keep":
        found += _pairs_of_rows(
            examined,
            "contradictions",
            0.005,
            repeats.contradictions,
            repeats.counterpart,
            "training pairs also occur with chosen and rejected swapped",
            "Annotators disagreed. Such pairs pull the policy both ways, and no model gets more than half right.",
            'Set data.contradictions = "drop" to remove all of them, or raise loss.label_smoothing.',
        )
    return found


def _pairs_of_rows(
    examined: Examined, name: str, limit: float, rows: np.ndarray, others: np.ndarray, title: str, detail: str, fix: str
) -> list[Finding]:
    """Make a finding whose examples are pairs of rows: a row and its counterpart. Empty without rows."""
    if not len(rows):
        return []
    share = len(rows) / max(1, examined.train.pairs)
    examples = [
        Example(examined.row(int(row)), examined.row(int(other)))
        for row, other in islice(zip(rows, others, strict=True), EXAMPLES)
    ]
    found = Finding(
        name, graded(share, limit), counted(len(rows), title), detail, fix, len(rows), share, tuple(examples)
    )
    return [found]


def _boundary(examined: Examined) -> list[Finding]:
    apart = examined.train.apart
    return examined.finding(
        "boundary",
        "note",
        apart,
        "pairs are tokenized differently joined than apart",
        "A token would span both, so they are encoded apart, as at inference; the text is the same.",
        "Nothing to do, unless words shall not stand together (words-glued).",
    )


def _begins(examined: Examined) -> list[Finding]:
    train, bos = examined.train, examined.tokenizer.bos_token_id
    if bos is None or not train.pairs:
        return []
    adds = examined.tokenizer("a")["input_ids"][:1] == [bos]
    cases = [
        ("double-begin", "error", train.begins > 1, "prompts begin with more than one begin token",
         "Template and tokenizer, or template and text, both add it. The model has never seen two.",
         "Remove it from the template or from the texts."),
        ("missing-begin", "warning", (train.begins == 0) & adds,
         "prompts have no begin token, and the tokenizer adds one to plain text",
         "The model was trained with it, but the chat template leaves it out.",
         "Put {{ bos_token }} at the beginning of the chat template."),
        ("inner-begin", "error", train.inner_begins > 0, "answers contain a begin token",
         "It occurs inside the text, so the model learns to start over in the middle of an answer.",
         "Remove it from the texts."),
    ]  # fmt: skip
    return [finding for case in cases for finding in examined.finding(*case)]


def _ends(examined: Examined) -> list[Finding]:
    if examined.counts["several_turns"]:  # each turn of an answer may end with the end token
        return []
    return examined.finding(
        "double-end",
        "warning",
        examined.train.double_ends > 0,
        "pairs have an answer with more than one end token",
        f"{examined.tokenizer.eos_token!r} occurs in the text of the answer, before the one at its end. Generation "
        "stops at the first one, but training also covers the text after it.",
        "Remove it from the texts.",
    )


def _control(examined: Examined) -> list[Finding]:
    return examined.finding(
        "control-tokens",
        "warning",
        examined.train.control,
        "pairs contain the text of a control token",
        "The tokenizer turns such text into the token itself, so a text can end or start a turn.",
        "Remove such strings from the texts, unless they are intended (a template was applied beforehand).",
    )


def _unknown(examined: Examined) -> list[Finding]:
    share = examined.train.unknown.sum() / max(1, work_of(examined.train).shared)
    return examined.finding(
        "unknown-tokens",
        graded(share, 0.001, 0.05),
        examined.train.unknown > 0,
        "pairs have unknown tokens",
        f"They are {share:.2%} of all tokens. The tokenizer has no token for parts of the text, and the model sees the "
        "same unknown token for all of them.",
        "Use the model's own tokenizer (tokenizer.path), or clean the text.",
    )


def _truncation(examined: Examined) -> list[Finding]:
    train, data = examined.train, examined.config.data
    if not train.pairs:
        return []
    holds, dropped = int(np.quantile(train.longest + train.cut, 0.99)), examined.counts["reasons"].get("too long", 0)
    known = f"99 % of the pairs have up to {holds:,} tokens."
    fix = f'Set data.max_length = {holds}, which cuts only 1 % of the pairs, or data.truncation = "drop".'
    if dropped:  # their lengths are unknown
        known = f"With a higher limit, the {dropped:,} pairs that were rejected as too long are used as well."
        fix = 'Raise data.max_length and run the doctor again, or set data.truncation = "drop".'
    what, ends = "prompts lose their beginning", ""
    if data.truncation != "keep_end":
        what, ends = "answers lose their end", ", including the end token"
    return examined.finding(
        "truncation",
        graded(train.cut > 0, 0.02, 0.25),
        train.cut > 0,
        f"pairs are cut to fit data.max_length = {data.max_length}",
        f"Their {what}{ends}: {int(train.cut.sum()):,} tokens in total. {known}",
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
            f"The median of chosen minus rejected is {shift:,} tokens. Length alone identifies the preferred answer in "
            f"{share:.0%} of the pairs, and DPO learns that first.",
            'Watch the length of answers in evaluation. To reduce the effect of length, set loss.kind = "sigmoid_norm" '
            'or "simpo", or loss.ld_alpha.',
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
        "held-out pairs have a prompt that is also in the training data",
        "Accuracy on these pairs measures memorisation.",
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
                counted(number, "held-out prompts nearly equal a training prompt"),
                "At least 80 % of their sequences of six tokens occur in one training prompt.",
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
        f"Each runs alone. The largest has {most:,} tokens, and these must fit into memory.",
        f"Set train.micro_batch_tokens = {most}, or lower data.max_length.",
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
