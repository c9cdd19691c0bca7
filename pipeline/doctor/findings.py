"""What a check found: how bad, in which rows, and what to do about it; and the report of all checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.doctor.numbers import Numbers, Work

SEVERITIES = ("note", "warning", "error")


class RowText(NamedTuple):
    """A row of the data: its file, its line or row there (`at`, from 1), and how it reads."""

    file: str
    at: str
    text: str

    @property
    def where(self) -> str:
        return f"{Path(self.file).name} {self.at}"

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


class Example(NamedTuple):
    """A row that a finding is about, and the other row that it belongs to, if any."""

    row: RowText
    other: RowText | None = None
    share: float | None = None  # of the row that stands in the other one

    def __str__(self) -> str:
        if self.other is None:
            return str(self.row)
        if self.share is None:
            return f"{self.row}, as {self.other.where}"
        return f"{self.row} ~ {self.other} ({self.share:.0%})"


class Finding(NamedTuple):
    """`name` never changes, so that scripts may look for it."""

    name: str
    severity: str
    title: str
    detail: str
    fix: str
    number: int | None = None
    share: float | None = None  # of the pairs that could have it
    examples: tuple[Example, ...] = ()


Facts = dict[str, str]


class Report(NamedTuple):
    """All that the doctor has to say."""

    findings: list[Finding]  # the worst first
    facts: dict[str, Facts]  # by topic
    train: Numbers
    held_out: Numbers
    work: Work | None
    max_length: int
    folder: Path

    @property
    def worst(self) -> str | None:
        return worst(self.findings)


def worst(findings: list[Finding]) -> str | None:
    """The highest severity among them."""
    return max((finding.severity for finding in findings), key=SEVERITIES.index, default=None)


def graded(share: Any, warning: float, error: float = 2.0) -> str:
    """How bad a share of the pairs is, or the share of an array that is true."""
    share = float(np.mean(share)) if np.size(share) else 0.0
    return "error" if share >= error else "warning" if share >= warning else "note"


def plain(report: Report) -> dict[str, Any]:
    """The report as doctor.json has it."""
    findings = []
    for finding in report.findings:
        rows = [[example.row.file, example.row.at] for example in finding.examples]
        findings.append({**finding._asdict(), "examples": [str(e) for e in finding.examples], "rows": rows})
    return {"findings": findings, "facts": report.facts}
