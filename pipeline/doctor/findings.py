"""Findings, each with severity, example rows and a fix, and the report that collects them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.doctor.numbers import Numbers, Work

SEVERITIES = ("note", "warning", "error")
PLURAL = re.compile(r"\b(pair|row|file|prompt|repeat)s\b")
SINGULAR = {"are": "is", "have": "has", "need": "needs", "equal": "equals", "express": "expresses", "occur": "occurs"}
VERB = re.compile(rf"\b({'|'.join(SINGULAR)})\b")


class RowText(NamedTuple):
    """A row of the data: its file, its place there (`at`: "line 3" or "row 3", from 1), and its text."""

    file: str
    at: str
    text: str

    @property
    def where(self) -> str:
        return f"{Path(self.file).name} {self.at}"

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


class Example(NamedTuple):
    """A row that shows a finding, and its counterpart, if any."""

    row: RowText
    other: RowText | None = None
    share: float | None = None  # share of the row's shingles that the other row contains

    def __str__(self) -> str:
        if self.other is None:
            return str(self.row)
        if self.share is None:
            return f"{self.row}, as {self.other.where}"
        return f"{self.row} ~ {self.other} ({self.share:.0%})"


class Finding(NamedTuple):
    """The result of a check. `name` never changes, so scripts can look for it."""

    name: str
    severity: str
    title: str
    detail: str
    fix: str
    number: int | None = None
    share: float | None = None  # share of the pairs that could have the fault
    examples: tuple[Example, ...] = ()


Facts = dict[str, str]


class Report(NamedTuple):
    """The doctor's report."""

    findings: list[Finding]  # the most serious first
    facts: dict[str, Facts]  # topic -> facts
    train: Numbers
    held_out: Numbers
    work: Work | None
    max_length: int
    folder: Path

    @property
    def worst(self) -> str | None:
        return worst(self.findings)


def worst(findings: list[Finding]) -> str | None:
    """Return the highest severity, or None without findings."""
    return max((finding.severity for finding in findings), key=SEVERITIES.index, default=None)


def graded(share: Any, warning: float, error: float = 2.0) -> str:
    """Return the severity of a share, given the limits for a warning and an error. An array counts by its mean."""
    share = float(np.mean(share)) if np.size(share) else 0.0
    return "error" if share >= error else "warning" if share >= warning else "note"


def counted(number: int, words: str) -> str:
    """Put a number before words that begin in the plural: "1 pair has no end", "2 pairs have no end"."""
    if number == 1:
        words = PLURAL.sub(r"\1", words, count=1)
        words = VERB.sub(lambda verb: SINGULAR[verb[0]], words, count=1)
    return f"{number:,} {words}"


def plain(report: Report) -> dict[str, Any]:
    """Convert a report to the content of doctor.json."""
    findings = []
    for finding in report.findings:
        rows = [[example.row.file, example.row.at] for example in finding.examples]
        findings.append({**finding._asdict(), "examples": [str(e) for e in finding.examples], "rows": rows})
    return {"findings": findings, "facts": report.facts}
