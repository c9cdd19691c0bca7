"""What a part measured, beside what it should: printed as a table, and written as JSON."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table


class Row(NamedTuple):
    """One number of a part."""

    what: str
    measured: float | None  # None: it cannot be measured here
    unit: str
    target: float | None = None  # None: the number is there to be known, or the card is not in the table
    most: bool = False  # whether the target is what it may be at most; otherwise at least
    look: str = ""  # the next thing to look at where the target is missed

    @property
    def ratio(self) -> float | None:
        """Measured over target."""
        return self.measured / self.target if self.measured is not None and self.target else None

    @property
    def missed(self) -> bool:
        if self.measured is None or self.target is None:
            return False
        return not (self.measured <= self.target if self.most else self.measured >= self.target)


class Report(NamedTuple):
    """The rows of a part, and what is kept beside them."""

    rows: list[Row]
    details: dict[str, Any] = {}  # noqa: RUF012 (never changed)


def show(name: str, report: Report) -> None:
    table = Table(title=name, title_justify="left")
    for column in ("", "measured", "target", "ratio", "unit"):
        table.add_column(column, justify="left" if column in ("", "unit") else "right")
    for row in report.rows:
        bound = "" if row.target is None else f"{'≤' if row.most else '≥'} {row.target:.4g}"
        measured = "-" if row.measured is None else f"{row.measured:.4g}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        table.add_row(row.what, measured, bound, ratio, row.unit, style="bold red" if row.missed else None)
    console = Console(highlight=False)
    console.print(table)
    for row in report.rows:
        if row.missed and row.look:
            console.print(f"{row.what}: next look at {row.look}", soft_wrap=True, markup=False)


def write(folder: Path, number: int, name: str, about: dict[str, Any], report: Report, seconds: float) -> Path:
    """Write `<number>-<name>.json`."""
    rows = [{**row._asdict(), "ratio": row.ratio, "missed": row.missed} for row in report.rows]
    content = {
        "part": name,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **about,
        "seconds": round(seconds, 1),
        "rows": rows,
        "details": report.details,
    }
    path = folder / f"{number}-{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path
