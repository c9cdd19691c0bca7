"""Token parts to windows in training order, in this process."""

import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cluster.items import here
from pipeline.cluster.shuffle import SCATTER_TASKS, _shares, write_epoch
from pipeline.errors import InputError
from pipeline.store import windows as windows_
from pipeline.store.tokens import ORDERED, PAIRS, TOKENS, row_id
from pipeline.store.windows import Order, plan_windows, spill_rows, stored_tables, window_index
from tests.pipeline.files import fill_cache, logps_of, parts_of, token_rows

EPOCH = Order(seed=3, epoch=1)


def steps_of(folder):
    """The rows of every step, one row group each."""
    files = [pq.ParquetFile(path) for path in sorted(folder.glob("window-*.parquet"))]
    return [file.read_row_group(group).to_pylist() for file in files for group in range(file.num_row_groups)]


def ids_of(folder):
    return [row["row_id"] for step in steps_of(folder) for row in step]


def in_order(rows, order):
    return sorted((row["row_id"] for row in rows), key=lambda i: int(order.keys(np.array([i]))[0]))


@pytest.fixture
def small_windows(monkeypatch):
    """A part of a few rows is some 4 kB on disk, so a few parts make several windows."""
    monkeypatch.setattr(windows_, "WINDOW_BYTES", 3000)


CASES = [
    # rows, sizes of parts, pairs a step, parts of the cache
    (60, [20, 20, 20], 4, 3),
    (61, [1, 30, 0, 29, 1], 7, 1),
    (37, [37], 8, 40),
    (20, [1] * 20, 3, 5),
    (12, [4, 4, 4], 100, 2),
    (10, [5, 5], 1, 2),
]


@pytest.mark.parametrize(("count", "sizes", "batch_pairs", "cache_parts"), CASES)
@pytest.mark.parametrize("order", [EPOCH, Order(3, None)], ids=["epoch", "files"])
def test_windows_hold_every_row_once_in_order_with_its_log_probs(
    tmp_path, small_windows, count, sizes, batch_pairs, cache_parts, order
):
    rows = token_rows(count)
    cache = fill_cache(tmp_path / "cache", rows + token_rows(30, seed=8), cache_parts)  # and some of other data
    windows = write_epoch(here, parts_of(tmp_path / "parts", rows, sizes), cache, order, batch_pairs, tmp_path / "out")
    steps = steps_of(tmp_path / "out")
    assert [row["row_id"] for step in steps for row in step] == in_order(rows, order)
    assert [len(step) for step in steps[:-1]] == [batch_pairs] * (len(steps) - 1)
    assert (windows.rows, windows.steps) == (count, len(steps)) == (count, -(-count // batch_pairs))
    by_id = {row["row_id"]: row for row in rows}
    for row in (row for step in steps for row in step):
        source = by_id[row["row_id"]]
        for name in PAIRS.names:
            assert row[name] == (source[name].tolist() if isinstance(source[name], np.ndarray) else source[name])
        for side in ("chosen", "rejected"):
            assert row[f"{side}_logps"] == logps_of(row[f"{side}_key"], len(row[f"{side}_ids"])).tolist()


def test_the_cases_above_have_one_window_and_several(tmp_path, small_windows):
    counts = [
        plan_windows(parts_of(tmp_path / str(n), token_rows(count), sizes), EPOCH, batch_pairs).count
        for n, (count, sizes, batch_pairs, _) in enumerate(CASES)
    ]
    assert min(counts) == 1
    assert sum(count > 3 for count in counts) >= 2


def test_windows_are_of_whole_steps(tmp_path, small_windows):
    windows = write_epoch(here, parts_of(tmp_path / "p", token_rows(60), [20] * 3), None, EPOCH, 4, tmp_path / "out")
    sizes = [pq.ParquetFile(path).num_row_groups for path in sorted((tmp_path / "out").glob("window-*.parquet"))]
    assert windows.count == len(sizes) > 1
    assert sizes[:-1] == [windows.steps_per_window] * (len(sizes) - 1)
    assert 0 < sizes[-1] <= windows.steps_per_window
    assert sum(sizes) == windows.steps == 15


def test_the_lengths_of_every_step_stand_beside_its_rows(tmp_path, small_windows):
    write_epoch(here, parts_of(tmp_path / "p", token_rows(60), [20] * 3), None, EPOCH, 4, tmp_path / "out")
    for path in sorted((tmp_path / "out").glob("window-*.parquet")):
        table = pq.read_table(path)
        with np.load(path.with_suffix(".npz")) as beside:
            expected = [[len(row[f"{n}_ids"]) for n in ("prompt", "chosen", "rejected")] for row in table.to_pylist()]
            assert beside["lengths"].tolist() == expected
            assert beside["steps"].tolist() == list(range(0, len(expected), 4))


def test_a_spill_has_a_row_group_for_every_window_also_where_it_has_no_rows(tmp_path, small_windows):
    """In file order each part falls into a window or two, and the others get nothing from it."""
    parts = parts_of(tmp_path / "p", token_rows(60), [10] * 6)
    order = Order(0, None)
    windows = plan_windows(parts, order, 5)
    assert windows.count >= 3
    item = {"kind": "tokens", "number": 0, "names": [str(parts[5])]}
    spill_rows(item, order, windows, str(tmp_path), stored_tables, None)
    file = pq.ParquetFile(tmp_path / "tokens-0000.parquet")
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    assert len(sizes) == windows.count
    assert (sizes[0], sum(sizes)) == (0, 10)


def test_one_sequence_in_many_pairs_and_windows(tmp_path, small_windows):
    """A third of the pairs share two chosen sequences, which every window needs and the cache has once."""
    rows = token_rows(90)
    cache = fill_cache(tmp_path / "cache", rows, 4)
    windows = write_epoch(here, parts_of(tmp_path / "p", rows, [30] * 3), cache, EPOCH, 5, tmp_path / "out")
    found = [row for step in steps_of(tmp_path / "out") for row in step]
    shared = Counter(row["chosen_key"] for row in found).most_common(2)
    assert [count for _, count in shared] == [15, 15]
    assert windows.count > 2
    for step in steps_of(tmp_path / "out"):
        for row in step:
            assert row["chosen_logps"] == logps_of(row["chosen_key"], len(row["chosen_ids"])).tolist()


def test_the_order_does_not_depend_on_how_rows_are_dealt_out(tmp_path, small_windows):
    rows = token_rows(60)
    mixed = random.Random(0).sample(rows, 60)
    for name, given, sizes in (("one", rows, [60]), ("many", rows, [10] * 6), ("mixed", mixed, [15] * 4)):
        write_epoch(here, parts_of(tmp_path / f"{name}-parts", given, sizes), None, EPOCH, 7, tmp_path / name)
    assert ids_of(tmp_path / "one") == ids_of(tmp_path / "many") == ids_of(tmp_path / "mixed")
    assert [len(step) for step in steps_of(tmp_path / "one")] == [len(step) for step in steps_of(tmp_path / "mixed")]


def test_epochs_and_seeds_have_orders_of_their_own(tmp_path):
    parts = parts_of(tmp_path / "p", token_rows(60), [60])
    orders = [Order(3, 0), Order(3, 1), Order(4, 1), Order(3, None)]
    for n, order in enumerate(orders):
        write_epoch(here, parts, None, order, 8, tmp_path / str(n))
    found = [ids_of(tmp_path / str(n)) for n in range(4)]
    assert len({tuple(ids) for ids in found}) == 4
    assert {tuple(sorted(ids)) for ids in found} == {tuple(range(60))}
    assert found[3] == list(range(60))


def test_rows_of_many_files_stand_in_file_order(tmp_path):
    """Row ids go up to 2^63, and their order is by number."""
    ids = [row_id(file, row) for file in (0, 1, 2**16 - 1) for row in (0, 1, 2**32 - 1)]
    rows = [{**row, "row_id": i} for row, i in zip(token_rows(9), ids, strict=True)]
    write_epoch(here, parts_of(tmp_path / "p", rows[::-1], [4, 5]), None, Order(0, None), 4, tmp_path / "out")
    assert ids_of(tmp_path / "out") == ids


def test_without_a_cache_there_are_no_log_probs(tmp_path):
    write_epoch(here, parts_of(tmp_path / "p", token_rows(9), [9]), None, EPOCH, 4, tmp_path / "out")
    assert pq.read_schema(tmp_path / "out" / "window-000000.parquet").equals(PAIRS)


def test_with_a_cache_the_schema_is_that_of_ordered_rows(tmp_path):
    rows = token_rows(9)
    cache = fill_cache(tmp_path / "cache", rows, 1)
    write_epoch(here, parts_of(tmp_path / "p", rows, [9]), cache, EPOCH, 4, tmp_path / "out")
    assert pq.read_schema(tmp_path / "out" / "window-000000.parquet").equals(ORDERED)


# The cache


@pytest.mark.parametrize(("scored", "lacking"), [(0, 21), (1, 17), (20, 1)])
def test_log_probs_that_are_missing_stop_the_stage(tmp_path, scored, lacking):
    """Of 21 pairs, with the sequences of none in the cache, of the first, of all but the last.

    The chosen sides are counted. That of the first pair is also that of pairs 6, 12 and 18.
    """
    rows = token_rows(21)
    cache = fill_cache(tmp_path / "cache", rows[:scored], 1 if scored else 0)
    with pytest.raises(InputError, match=f"the cache lacks the log-probs of {lacking} sequences; score them first"):
        write_epoch(here, parts_of(tmp_path / "p", rows, [21]), cache, EPOCH, 4, tmp_path / "out")


def test_a_sequence_that_two_runs_scored_has_one_value(tmp_path):
    rows = token_rows(12)
    cache = fill_cache(tmp_path / "cache", rows, 1)
    key = rows[1]["chosen_key"]
    cache.write([key], [np.full(len(rows[1]["chosen_ids"]), -5, np.float32)])
    write_epoch(here, parts_of(tmp_path / "p", rows, [12]), cache, EPOCH, 4, tmp_path / "out")
    (found,) = {tuple(row["chosen_logps"]) for step in steps_of(tmp_path / "out") for row in step if row["row_id"] == 1}
    assert found in {tuple(logps_of(key, len(found)).tolist()), (-5.0,) * len(found)}
    assert sorted(ids_of(tmp_path / "out")) == list(range(12))


# The pieces


def test_shares_hold_every_file_once():
    paths = [str(n) for n in range(100)]
    for count in (1, 31, 32, 33, 100):
        shares = _shares(paths[:count])
        assert len(shares) == min(count, SCATTER_TASKS)
        assert sorted(p for share in shares for p in share) == sorted(paths[:count])
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert _shares([]) == []


def test_the_index_names_each_sequence_once_for_each_window(tmp_path, small_windows):
    rows = token_rows(60)
    parts = parts_of(tmp_path / "p", rows, [20] * 3)
    windows = plan_windows(parts, EPOCH, 4)
    keys, where = window_index(parts, EPOCH, windows)
    window = np.searchsorted(windows.boundaries, EPOCH.keys(np.arange(60)), side="right")
    expected = {(row[f"{side}_key"], window[row["row_id"]]) for row in rows for side in ("chosen", "rejected")}
    assert list(zip((k.tobytes() for k in keys), where.tolist(), strict=True)) == sorted(expected)


def test_every_part_is_looked_through_a_row_group_at_a_time(tmp_path):
    rows = token_rows(20)
    path = tmp_path / "part.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=TOKENS), path, row_group_size=3)
    assert [t.num_rows for t in stored_tables(str(path))] == [3] * 6 + [2]
    write_epoch(here, [path], None, EPOCH, 4, tmp_path / "out")
    assert ids_of(tmp_path / "out") == in_order(rows, EPOCH)
