"""Rejected rows -> a finding for each kind."""

from __future__ import annotations

from typing import Any

from pipeline.data.rejections import NOT_A_FAULT
from pipeline.doctor.findings import Example, Finding, RowText, counted

EXAMPLES = 3
ON_THE_WAY = ("text lost", "thoughts lost", "text changed")  # kinds that are a check of their own

WHY = {
    "same sides": (
        "pairs have the same answer on both sides",
        "They express no preference. Check how these rows were made.",
    ),
    "tie": ("rows are ties", "Nothing to do: they are not used."),
    "same once cut": ("pairs have the same answer on both sides after truncation", "Raise data.max_length."),
    "too long": (
        "pairs are too long",
        'Raise data.max_length, or let data.truncation cut them ("keep_end" also cuts prompts).',
    ),
    "damaged file": (
        "files are damaged, and the rows after the damage are lost",
        "Copy the files again from their source. The number of lost rows is unknown.",
    ),
    "images": ("rows need an image, a film or a sound", "Leave them out: ray-align trains on text alone."),
    "unread column": (
        "rows have a column that may change the text and that nobody reads",
        "Do what the reason of a row says: name it in data.columns, or in data.ignore.",
    ),
    "transcript": (
        "rows have a transcript of which it is unclear who speaks",
        "Write its turns as messages, or do what the reason of a row says.",
    ),
    "template": ("rows are refused by the chat template", "See the findings on the chat template."),
    "text lost": (
        "rows have a text that the chat template leaves out",
        "Give the text another role, or use a template that writes it (tokenizer.chat_template).",
    ),
    "thoughts lost": (
        "rows have thoughts beside the content, which the chat template does not read",
        "Write the thoughts into the content, as <think>...</think>, or use a template that reads them.",
    ),
    "text changed": (
        "rows have answers that the tokenizer changes where they follow the prompt",
        "End the prompts, or begin the answers, with a blank or a line break.",
    ),
    "duplicate": ("repeated pairs are dropped", 'Nothing to do: this follows from data.duplicates = "drop".'),
    "contradiction": ("contradicting pairs are dropped", 'Nothing to do: data.contradictions = "drop" asks for it.'),
}


def rejected(counts: dict[str, Any], rows: dict[str, list[RowText]], limit_of_run: float) -> list[Finding]:
    """Findings on the rows that cannot be used.

    Args:
        counts: of the stage prepare.
        rows: the first rows of each kind, with the reason as their text.
        limit_of_run: data.max_rejected_fraction.
    """
    found = []
    bad = counts["rejected"] - sum(counts["reasons"].get(kind, 0) for kind in NOT_A_FAULT)
    too_many = bad > limit_of_run * counts["read"]
    for kind, number in counts["reasons"].items():
        title, fix = WHY.get(
            kind, (f"rows cannot be used: {kind}", "Fix the rows, or map their columns (data.columns).")
        )
        severity = "error" if too_many or kind == "damaged file" else "warning"
        severity = "note" if kind in NOT_A_FAULT else severity
        share = bad / counts["read"]
        limit = (
            f" All kinds together are {share:.1%} of the data; data.max_rejected_fraction = {limit_of_run} allows less."
        )
        detail = "They are left out. rejected.jsonl lists all of them, with file, line, byte and reason."
        found.append(
            Finding(
                kind.replace(" ", "-") if kind in ON_THE_WAY else f"rejected-{kind.replace(' ', '-')}",
                severity,
                counted(number, title),
                detail + (limit if too_many and severity == "error" else ""),
                fix,
                number,
                number / counts["read"],
                tuple(map(Example, rows.get(kind, ())[:EXAMPLES])),
            )
        )
    if not counts["train"]:
        what = "Set data.train to other data." if not counts["read"] else "See the findings on rejected rows."
        found.append(
            Finding("nothing-to-train-on", "error", "no pair is left for training", "A run would stop here.", what, 0)
        )
    return found
