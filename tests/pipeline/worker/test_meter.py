"""The share of a card's peak that a step used."""

from pathlib import Path

import pyarrow as pa
import pytest

from dpo.lm.flops import Work, training_flops
from dpo.lm.model_config import Shape, read_config
from dpo.text.pairs import TokenizedPair
from pipeline.store.tokens import TOKENS, token_row
from pipeline.worker.loop import Done
from pipeline.worker.meter import Meter
from pipeline.worker.objectives import Preference, Rows, Supervised
from tests.pipeline.worker.group import Task
from tests.pipeline.worker.small_run import json_lines, make_job


def rows_of(*pairs):
    made = [token_row(number, TokenizedPair(*pair, False, 0)) for number, pair in enumerate(pairs)]
    return Rows(pa.Table.from_pylist(made, schema=TOKENS))


def test_the_share_by_hand(model):
    """Prompts of 3 and 2, chosen 2 and 1, rejected 1 and 4; the head computes what is scored."""
    one = ([1, 2, 3], [4, 5], [6], [True, True], [True])
    other = ([1, 2], [4], [6, 7, 8, 9], [True], [False, True, True, True])
    meter = Meter(Shape.of(read_config(model)), 1e6)
    both = Work(3 + 2 + 1 + 2 + 1 + 4, (5**2 + 4**2 - 3**2) + (3**2 + 6**2 - 2**2), 3 + 4)
    assert meter.share(Preference(()), rows_of(one, other), 0.5) == training_flops(meter.shape, both) / 0.5e6
    chosen = Work(3 + 2 + 2 + 1, 5**2 + 3**2, 3)
    supervised = Supervised(("chosen",))
    assert meter.share(supervised, rows_of(one, other), 2) == training_flops(meter.shape, chosen) / 2e6


def test_no_meter_without_a_known_card_or_known_sizes(model, epochs, tmp_path):
    job = make_job(tmp_path / "job", model, epochs, 1)
    assert Meter.of(job, None, 2) is None
    assert Meter.of(job, 1e6, 2).peak == 2e6
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "config.json").write_text('{"model_type": "mamba", "vocab_size": 64}')
    assert Meter.of(make_job(tmp_path / "other", strange, epochs, 1), 1e6, 2) is None


@pytest.mark.group
def test_steps_have_it_where_the_card_is_known(groups, model, epochs, tmp_path):
    known, unknown = (make_job(tmp_path / name, model, epochs, 1) for name in ("known", "unknown"))
    answers = groups.run(2, [Task(known, epochs, [], peak=1e9), Task(unknown, epochs, [])])
    assert all(isinstance(answer, Done) for of_job in answers for answer in of_job), answers
    steps = [table for epoch in epochs for table in epoch]
    metrics = json_lines(Path(known.logs) / "metrics.jsonl")
    for row, table in zip(metrics, steps, strict=True):
        share = Meter.of(known, 1e9, 2).share(Preference(known.mixture), Rows(table), row["perf/step_seconds"])
        assert row["perf/mfu"] == pytest.approx(share) and share > 0
    assert not any("perf/mfu" in row for row in json_lines(Path(unknown.logs) / "metrics.jsonl"))
