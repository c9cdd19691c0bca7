"""Weighted sources: how often an epoch has their rows, under which ids, and with which log-probs."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cluster.items import here
from pipeline.cluster.shuffle import write_epoch
from pipeline.errors import InputError
from pipeline.store import windows as windows_
from pipeline.store.tokens import PAIRS, TOKENS, place_of, repeated, row_id, token_table
from pipeline.store.windows import Order, plan_windows
from tests.pipeline.files import fill_cache, logps_of, parts_of, token_rows
from tests.pipeline.store.test_windows import in_order, steps_of


def rows_of_files(*counts):
    """So many rows of each file; every fifth is the second pair of its row."""
    places = [(file, row) for file, count in enumerate(counts) for row in range(count)]
    ids = [row_id(file, row - (row % 5 == 4), int(row % 5 == 4)) for file, row in places]
    return [{**row, "row_id": identity} for row, identity in zip(token_rows(len(ids)), ids, strict=True)]


def many(count, weight):
    """How often each of many rows stands in an epoch, by its id."""
    table = pa.table({"row_id": [row_id(0, row) for row in range(count)]})
    ids = repeated(table, (weight,))["row_id"].to_pylist()
    return Counter(row_id(*place_of(identity)) for identity in ids), ids


def epoch(folder, rows, order, cache=None, sizes=None):
    """The rows of an epoch, in order."""
    parts = parts_of(folder.with_name(f"{folder.name}-parts"), rows, sizes or [len(rows)])
    windows = write_epoch(here, parts, cache, order, 4, folder)
    found = [row for step in steps_of(folder) for row in step]
    assert (windows.rows, windows.steps) == (len(found), -(-len(found) // 4))
    return found


# How often


def test_a_weight_of_two_has_every_row_twice():
    counts, ids = many(500, 2.0)
    assert set(counts.values()) == {2} and len(counts) == 500
    assert len(set(ids)) == 1000


def test_a_weight_of_a_quarter_has_a_quarter_of_the_rows():
    """500 of 2,000, within five standard deviations of 19.4; none of them twice."""
    counts, ids = many(2000, 0.25)
    assert abs(len(ids) - 500) < 5 * 19.4
    assert set(counts.values()) == {1}
    spread = np.array(sorted(counts)) >> 11
    assert abs((spread < 1000).sum() - len(ids) / 2) < 5 * 11.2  # from the whole file


def test_a_weight_of_two_and_a_half_has_rows_two_or_three_times():
    counts, ids = many(2000, 2.5)
    assert set(counts.values()) == {2, 3} and len(counts) == 2000
    assert abs(len(ids) - 5000) < 5 * 22.4
    assert len(set(ids)) == len(ids)


def test_a_larger_weight_has_all_that_a_smaller_one_has():
    chosen = [set(many(1000, weight)[1]) for weight in (0.1, 0.5, 0.9, 1.0, 1.5, 16.0)]
    for less, more in pairwise(chosen):
        assert less < more
    assert len(chosen[-1]) == 16_000
    assert max(chosen[-1]) < 2**63


def test_each_file_has_its_weight():
    rows = rows_of_files(50, 50, 50)
    table = repeated(token_table(rows), (2.0, 1.0, 3.0))
    assert Counter(place_of(identity)[0] for identity in table["row_id"].to_pylist()) == {0: 100, 1: 50, 2: 150}
    assert table.schema.equals(TOKENS)


def test_a_repeat_is_the_row_under_another_id():
    """Only the uppermost bits differ, so that file, row and copy are found in it."""
    rows = rows_of_files(20, 20)
    by_id = {row["row_id"]: row for row in token_table(rows).to_pylist()}
    found = repeated(token_table(rows), (2.0, 2.5)).to_pylist()
    assert len({row["row_id"] for row in found}) == len(found) > 80
    for row in found:
        source = by_id[row_id(*place_of(row["row_id"]))]
        assert {**row, "row_id": 0} == {**source, "row_id": 0}
    assert {row["row_id"] for row in found} > set(by_id)  # the first of each keeps its id


def test_without_weights_a_table_is_as_it_was():
    table = token_table(rows_of_files(9))
    assert repeated(table, ()) is table
    assert repeated(table, (1.0,)).equals(table)
    assert len(repeated(table.slice(0, 0), (2.0,))) == 0


# In an epoch


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr(windows_, "WINDOW_BYTES", 4000)


WEIGHTS = (2.0, 0.25, 2.5)


def test_an_epoch_has_its_rows_in_order_and_with_their_log_probs(tmp_path, small_windows):
    rows = rows_of_files(30, 40, 20)
    cache = fill_cache(tmp_path / "cache", rows, 3)
    order = Order(3, 1, WEIGHTS)
    found = epoch(tmp_path / "out", rows, order, cache, [25] * 3 + [15])
    expected = repeated(token_table(rows), WEIGHTS).select(PAIRS.names).to_pylist()
    assert [row["row_id"] for row in found] == in_order(expected, order)
    by_id = {row["row_id"]: row for row in expected}
    for row in found:
        assert {name: row[name] for name in PAIRS.names} == by_id[row["row_id"]]
        for side in ("chosen", "rejected"):
            assert row[f"{side}_logps"] == logps_of(row[f"{side}_key"], len(row[f"{side}_ids"])).tolist()
    counts = Counter(place_of(row["row_id"]) for row in found)
    assert {counts[place] for place in counts if place[0] == 0} == {2}
    assert {counts[place] for place in counts if place[0] == 1} == {1}
    assert {counts[place] for place in counts if place[0] == 2} == {2, 3}


def test_every_epoch_has_the_same_rows_in_another_order(tmp_path):
    rows = rows_of_files(60, 60)
    epochs = [
        [row["row_id"] for row in epoch(tmp_path / str(number), rows, order)]
        for number, order in enumerate([Order(0, 0, (0.25, 1.5)), Order(0, 1, (0.25, 1.5)), Order(7, 0, (0.25, 1.5))])
    ]
    assert len({tuple(ids) for ids in epochs}) == 3
    assert len({tuple(sorted(ids)) for ids in epochs}) == 1


def test_a_row_and_its_repeats_stand_apart(tmp_path):
    """Their places are drawn one by one: of 200 rows that come twice, few come twice in a row."""
    rows = rows_of_files(200)
    places = [place_of(row["row_id"]) for row in epoch(tmp_path / "out", rows, Order(0, 0, (2.0,)))]
    assert sum(one == other for one, other in pairwise(places)) < 6  # one is expected


def test_how_rows_are_dealt_out_does_not_matter(tmp_path, small_windows):
    rows = rows_of_files(30, 30)
    order = Order(1, 2, (0.5, 3.0))
    one = epoch(tmp_path / "one", rows, order)
    assert epoch(tmp_path / "many", rows, order, sizes=[7] * 8 + [4]) == one


def test_a_weight_of_one_changes_nothing(tmp_path, small_windows):
    rows = rows_of_files(30, 30)
    cache = fill_cache(tmp_path / "cache", rows, 2)
    for name, weights in (("with", (1.0, 1.0)), ("without", ())):
        epoch(tmp_path / name, rows, Order(3, 1, weights), cache, [20] * 3)
    names = [path.name for path in sorted((tmp_path / "with").glob("window-*"))]
    assert len(names) > 2
    for name in names:
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()


def test_repeats_are_cut_into_windows_as_rows_are(tmp_path, small_windows):
    """A window must fit into memory, however often its rows are repeated."""
    parts = parts_of(tmp_path / "parts", rows_of_files(60), [20] * 3)
    plain, weighted = (plan_windows(parts, Order(0, 0, weights), 4) for weights in ((), (16.0,)))
    assert weighted.rows == 16 * plain.rows
    assert plain.count > 2
    assert weighted.steps_per_window <= plain.steps_per_window + 1
    assert 12 * plain.count <= weighted.count <= 16 * plain.count


def test_weights_that_leave_nothing(tmp_path):
    parts = parts_of(tmp_path / "parts", rows_of_files(2, 1), [3])
    with pytest.raises(InputError) as error:
        plan_windows(parts, Order(0, 0, (0.001, 0.002)), 4)
    assert str(error.value) == ("the weights [0.001, 0.002] of the sources of data.train leave no row; raise them")


def test_a_file_of_which_nothing_is_left_stops_nothing(tmp_path):
    rows = rows_of_files(3, 10)
    found = epoch(tmp_path / "out", rows, Order(0, 0, (0.001, 1.0)), fill_cache(tmp_path / "cache", rows, 1), [3, 10])
    assert {place_of(row["row_id"])[0] for row in found} == {1} and len(found) == 10
    assert pq.ParquetFile(tmp_path / "out" / "window-000000.parquet").num_row_groups == 3
