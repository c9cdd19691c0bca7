"""A finished run -> report.html, a page without further files, and pairs.jsonl, the held-out pairs as text."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpo.lm.whole_folder import file_digest, read_json, to_json, write_atomically
from dpo.text.plain import PlainTokenizer
from pipeline.config import Config
from pipeline.report import pages
from pipeline.report.answers import side_by_side
from pipeline.report.card import training_facts
from pipeline.report.curves import draw_curves
from pipeline.report.diagnoses import diagnose
from pipeline.report.evidence import LN_2, Curve, Evidence, HeldOut, read_evidence
from pipeline.store import run_files
from pipeline.store.artifacts import MANIFEST, fingerprint
from pipeline.store.parquet import row_groups
from pipeline.store.tokens import place_of

FORMAT_VERSION = 1
SHOWN_PAIRS, SHOWN_ANSWERS = 5, 20
POINTS = 400  # of a curve; longer ones are drawn as means of so many parts


class Asked(NamedTuple):
    """The inputs of a report; all of it can be handed to another process."""

    run_dir: Path
    name: str
    parts: list[Path]  # the held-out pairs as tokens
    files: list[str]  # the data files, in the order of row ids
    tokenizer: PlainTokenizer
    max_grad_norm: float
    facts: dict[str, dict[str, str]]  # topic -> name -> value


class Row(NamedTuple):
    """A held-out pair as text. Log-probs are in nats, `moved` is policy minus reference."""

    file: str
    line: int
    prompt: str
    chosen: str
    rejected: str
    margin: float
    chosen_moved: float
    rejected_moved: float
    chosen_tokens: int
    rejected_tokens: int


def write_report(asked: Asked) -> Path:
    """Write `report.html`, `pairs.jsonl` and `curves.png`, unless they are of this evaluation and these metrics.

    Returns:
        the page.
    """
    path, drawn = asked.run_dir / run_files.REPORT, asked.run_dir / run_files.CURVES
    stamp = _stamp(asked.run_dir)
    if path.exists() and drawn.exists() and stamp in path.read_text(encoding="utf-8")[:2000]:
        return path
    draw_curves(asked.run_dir, asked.name)
    evidence = read_evidence(asked.run_dir, asked.parts, asked.max_grad_norm)
    shown = _write_pairs(asked, evidence.held_out) if evidence.held_out is not None else []
    pages.write_page(
        path,
        "run.html",
        title=f"{asked.name}: report",
        name=asked.name,
        stamp=stamp,
        verdict=_verdict(evidence),
        diagnoses=diagnose(evidence),
        pictures=_pictures(evidence),
        answers=side_by_side(evidence.answers[:SHOWN_ANSWERS]),
        answered=len(evidence.answers),
        furthest=[_cut(row._asdict()) for row in shown[::-1][:SHOWN_PAIRS]],
        wrong_way=[_cut(row._asdict()) for row in shown[:SHOWN_PAIRS] if row.margin < 0],
        facts=asked.facts,
    )
    return path


def facts_of(
    config: Config, counts: dict[str, Any], seconds: dict[str, float], reference: str | None
) -> dict[str, dict[str, str]]:
    """Return the settings and the times of a run, by topic and name, as text."""
    times = {stage: f"{took:,.1f} s" for stage, took in seconds.items()}
    return {"Training": training_facts(config, counts, reference), "Time of each stage": times}


def _stamp(run_dir: Path) -> str:
    evaluation = read_json(run_dir / run_files.EVALUATION / MANIFEST) or {}
    path = run_dir / run_files.METRICS
    metrics = file_digest(path) if path.exists() else None
    made_of = {"format": FORMAT_VERSION, "evaluation": evaluation.get("fingerprint"), "metrics": metrics}
    return f"made of {fingerprint(made_of)}"


def _verdict(evidence: Evidence) -> str:
    """One sentence: loss, and accuracy on the held-out pairs."""
    loss, accuracy = evidence.curves.get("loss"), evidence.curves.get("eval/rewards/accuracies")
    if loss is None:
        return "metrics.jsonl has no step that can be read"
    said = f"{len(loss.values):,} steps, loss {loss.values[0]:.4f} at the first and {loss.values[-1]:.4f} at the last"
    if accuracy is None:
        return said
    return f"{said}; accuracy {accuracy.values[-1]:.3f} on the held-out pairs"


# Pairs as text


def _write_pairs(asked: Asked, held_out: HeldOut) -> list[Row]:
    """Write all held-out pairs as text; return those of the smallest and of the largest margins, in their order."""
    order = np.argsort(held_out.margins, kind="stable")
    wanted = {int(held_out.row_id[n]) for n in [*order[:SHOWN_PAIRS], *order[-SHOWN_PAIRS:]]}
    kept: list[Row] = []
    lines = []
    for number, row in _rows(asked, held_out):
        lines.append(to_json({"row_id": number, **row._asdict()}))
        if number in wanted:
            kept.append(row)
    write_atomically(asked.run_dir / run_files.PAIRS, "".join(line + "\n" for line in lines))
    return sorted(kept, key=lambda row: row.margin)


def _rows(asked: Asked, held_out: HeldOut) -> Iterator[tuple[int, Row]]:
    index = {number: at for at, number in enumerate(held_out.row_id.tolist())}
    columns = ["row_id", "line", "prompt_ids", "chosen_ids", "rejected_ids"]
    for path in asked.parts:
        for table in row_groups(path):
            for row in table.select(columns).to_pylist():
                at = index.get(row["row_id"])
                if at is None:
                    continue
                yield row["row_id"], _row(asked, held_out, at, row)


def _row(asked: Asked, held_out: HeldOut, at: int, row: dict[str, Any]) -> Row:
    decode = asked.tokenizer.decode
    return Row(
        file=asked.files[place_of(row["row_id"])[0]],
        line=row["line"],
        prompt=decode(row["prompt_ids"]),
        chosen=decode(row["chosen_ids"]),
        rejected=decode(row["rejected_ids"]),
        margin=float(held_out.margins[at]),
        chosen_moved=float(held_out.chosen_moved[at]),
        rejected_moved=float(held_out.rejected_moved[at]),
        chosen_tokens=int(held_out.chosen_tokens[at]),
        rejected_tokens=int(held_out.rejected_tokens[at]),
    )


def _cut(row: dict[str, Any]) -> dict[str, Any]:
    """Texts no longer than a page shows them."""
    return {name: pages.cut(value) if isinstance(value, str) else value for name, value in row.items()}


# Pictures

CURVES = (
    ("Loss; the dotted line is ln 2", (("loss", "train", "chosen"), ("eval/loss", "held out", "rejected"))),
    (
        "Reward margin: chosen minus rejected",
        (("rewards/margins", "train", "chosen"), ("eval/rewards/margins", "held out", "rejected")),
    ),
    (
        "Accuracy: share of pairs whose margin is above zero",
        (("rewards/accuracies", "train", "chosen"), ("eval/rewards/accuracies", "held out", "rejected")),
    ),
    (
        "Rewards of chosen and rejected answers in training; a chosen one below zero has become less likely",
        (("rewards/chosen", "chosen", "chosen"), ("rewards/rejected", "rejected", "rejected")),
    ),
    ("Norm of the gradient", (("grad_norm", "before clipping", "prompt"),)),
    ("Learning rate", (("learning_rate", "", "prompt"),)),
)


def _pictures(evidence: Evidence) -> list[pages.Picture]:
    drawn = [
        pages.picture(partial(_curve, evidence.curves, series, "ln 2" in caption), caption)
        for caption, series in CURVES
        if any(name in evidence.curves for name, _, _ in series)
    ]
    if evidence.held_out is not None:
        drawn.append(pages.picture(partial(_margins, evidence.held_out), "Margins of the held-out pairs, in nats"))
        caption = "Margin of each held-out pair against how much longer its chosen answer is"
        drawn.append(pages.picture(partial(_by_length, evidence.held_out), caption))
    if evidence.answers:
        drawn.append(pages.picture(partial(_answer_lengths, evidence.answers), "Characters of the answers"))
    return drawn


def _curve(
    curves: dict[str, Curve], series: tuple[tuple[str, str, str], ...], ln_2: bool, axes: Any, colors: dict[str, str]
) -> None:
    if ln_2:
        axes.axhline(LN_2, color=colors["faint"], ls=":", lw=1)
    for name, label, color in series:
        if name in curves:
            steps, values = thinned(curves[name])
            marker = "o" if name.startswith("eval/") else ""
            axes.plot(steps, values, color=colors[color], label=label, lw=1.3, marker=marker, markersize=3)
    axes.set(xlabel="optimizer step")
    if any(label for _, label, _ in series):
        axes.legend(frameon=False)


def thinned(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Return steps and values of a curve, or the means of POINTS parts of it where it is longer."""
    if len(curve.values) <= POINTS:
        return curve.steps, curve.values
    parts = np.array_split(np.arange(len(curve.values)), POINTS)
    return tuple(np.array([of[part].mean() for part in parts]) for of in curve)  # type: ignore[return-value]


def _margins(held_out: HeldOut, axes: Any, colors: dict[str, str]) -> None:
    bins = np.histogram_bin_edges(held_out.margins, 40)
    axes.hist(held_out.margins[held_out.margins > 0], bins, color=colors["chosen"], label="as the label says")
    axes.hist(held_out.margins[held_out.margins <= 0], bins, color=colors["rejected"], label="the other way")
    axes.set(xlabel="nats", ylabel="pairs")
    axes.legend(frameon=False)


def _by_length(held_out: HeldOut, axes: Any, colors: dict[str, str]) -> None:
    longer = held_out.chosen_tokens - held_out.rejected_tokens
    axes.scatter(longer, held_out.margins, s=6, alpha=0.5, color=colors["prompt"], linewidths=0, rasterized=True)
    axes.axhline(0, color=colors["faint"], lw=1)
    axes.set(xlabel="tokens, chosen minus rejected", ylabel="margin, nats")


def _answer_lengths(answers: list[dict[str, Any]], axes: Any, colors: dict[str, str]) -> None:
    sizes = {name: [len(row[name]) for row in answers] for name in ("before", "after", "chosen")}
    bins = np.histogram_bin_edges(np.concatenate(list(sizes.values())), 30)
    for (name, values), color in zip(sizes.items(), ("faint", "prompt", "chosen"), strict=True):
        axes.hist(values, bins, histtype="step", lw=1.5, label=name, color=colors[color])
    axes.set(xlabel="characters", ylabel="prompts")
    axes.legend(frameon=False)
