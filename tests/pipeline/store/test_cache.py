import json
import time
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from pipeline.store.cache import (
    KEY,
    KEY_BYTES,
    PROMPT_BYTES,
    Cache,
    DamagedPart,
    GonePart,
    keys_of,
    sequence_key,
)
from pipeline.store.compaction import compact
from tests.pipeline.crashes import every_crash


def key(prompt=(1, 2), completion=(3, 4), mask=(1, 1)):
    return sequence_key(np.array(prompt), np.array(completion), np.array(mask))


def some_keys(count, seed=0):
    """Random keys, many of which hold zero bytes, also at their ends."""
    draw = np.random.default_rng(seed)
    data = draw.integers(0, 256, (count, KEY_BYTES)) * draw.integers(0, 2, (count, KEY_BYTES))
    return [row.astype(np.uint8).tobytes() for row in data]


def to_bytes(keys):
    return [k.tobytes() for k in keys]


# Keys


def test_a_key_depends_on_prompt_completion_and_mask():
    keys = [
        key(),
        key(prompt=(1, 3)),
        key(prompt=(2, 1)),
        key(prompt=(1,)),
        key(completion=(3, 5)),
        key(completion=(4, 3)),
        key(mask=(1, 0)),
        key(mask=(0, 1)),
        key(prompt=(1, 2, 3), completion=(4,), mask=(1,)),  # the same tokens, cut elsewhere
        key(completion=(3, 4, 0), mask=(1, 1, 0)),
    ]
    assert len(set(keys)) == len(keys)
    assert {len(k) for k in keys} == {KEY_BYTES}


def test_a_key_depends_on_values_and_not_on_their_type():
    mask = np.array([True, False])
    assert sequence_key(np.array([1, 2], np.int64), np.array([3, 4], np.int16), mask) == key(mask=(1, 0))


def test_sequences_of_one_prompt_stand_together():
    same = [key(completion=(i, i), mask=(1, i % 2)) for i in range(50)]
    assert len(set(same)) == 50
    assert {k[:PROMPT_BYTES] for k in same} == {key()[:PROMPT_BYTES]}
    assert key(prompt=(1, 3))[:PROMPT_BYTES] != key()[:PROMPT_BYTES]


def test_keys_do_not_change_between_versions():
    """They are on disk; another value would score everything anew. Computed with hashlib alone:

    p = blake2b(<i4 of 1, 2>, 16); key = p[:4] + blake2b(p + <i4 of 3, 4> + 0b11000000, 12)
    """
    assert key().hex() == "2cc5e4d45f1e616dbd82225b33ffe8d8"


# Columns of keys


def test_a_column_becomes_an_array():
    keys = some_keys(20)
    array = pa.array(keys, pa.binary(KEY_BYTES))
    assert keys_of(array).dtype == KEY
    assert to_bytes(keys_of(array)) == keys
    assert to_bytes(keys_of(pa.chunked_array([array[:7], array[7:7], array[7:]]))) == keys
    assert to_bytes(np.sort(keys_of(array))) == sorted(keys)


def test_a_slice_of_a_column_is_read_where_it_stands():
    keys = some_keys(20)
    array = pa.array(keys, pa.binary(KEY_BYTES))
    assert to_bytes(keys_of(array[5:9])) == keys[5:9]
    assert to_bytes(keys_of(pa.chunked_array([array])[5:9])) == keys[5:9]
    assert to_bytes(keys_of(pa.table({"key": array}).slice(5, 4)["key"])) == keys[5:9]


@pytest.mark.parametrize("chunks", [[], [pa.array([], pa.binary(KEY_BYTES))]])
def test_an_empty_column_is_an_empty_array(chunks):
    array = keys_of(pa.chunked_array(chunks, pa.binary(KEY_BYTES)))
    assert (len(array), array.dtype) == (0, KEY)


# Parts


def sorted_keys(keys):
    return np.sort(np.frombuffer(b"".join(keys), KEY))


def values_of(keys):
    return [np.full(3, int.from_bytes(k[-2:], "big"), np.float32) for k in keys]


def test_what_was_written_is_read(tmp_path):
    cache = Cache(str(tmp_path))
    keys = some_keys(10)
    values = {k: np.arange(i, dtype=np.float32) / -7 for i, k in enumerate(keys)}
    cache.write(keys, [values[k] for k in keys])
    (table,) = cache.read(cache.parts()[0])
    assert table["key"].to_pylist() == sorted(keys)
    for k, logps in zip(table["key"].to_pylist(), table["logps"], strict=True):
        assert np.array_equal(logps.values.to_numpy(), values[k])


def test_a_few_values_are_looked_up(tmp_path):
    cache = Cache(str(tmp_path))
    keys = some_keys(30)
    cache.write(keys[:20], values_of(keys[:20]))
    cache.write(keys[10:], values_of(keys[10:]))
    wanted = [keys[3], keys[15], keys[29], b"none" * 4]
    found = cache.values(sorted_keys(wanted))
    assert {k: v.tolist() for k, v in found.items()} == {k: values_of([k])[0].tolist() for k in wanted[:3]}


def test_the_same_sequences_make_the_same_file(tmp_path):
    """A retry, whose batch came in another order, replaces the part by itself."""
    cache = Cache(str(tmp_path))
    keys = some_keys(10)
    cache.write(keys, values_of(keys))
    (name,) = cache.parts()
    before = (tmp_path / name).read_bytes()
    cache.write(keys[::-1], values_of(keys[::-1]))
    assert cache.parts() == [name]
    assert (tmp_path / name).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [name]  # and nothing beside it


def test_a_name_says_range_and_rows(tmp_path):
    cache = Cache(str(tmp_path))
    name = cache.write([b"cccc" + bytes(12), b"aaaa" + bytes(12)], [np.zeros(1, np.float32)] * 2)
    assert name.startswith(f"{b'aaaa'.hex()}-{b'cccc'.hex()}-2-")
    assert cache.rows() == 2
    assert cache.bytes() == (tmp_path / name).stat().st_size


def test_half_a_part_is_no_part(tmp_path):
    """What a killed writer leaves has another name, and so have files that are not ours."""
    (tmp_path / ".0123.77").write_bytes(b"PAR1")
    (tmp_path / "part.parquet").write_bytes(b"PAR1")
    assert Cache(str(tmp_path)).parts() == []


def test_the_identity_stands_beside_the_parts(tmp_path):
    cache = Cache(str(tmp_path / "cache"))
    cache.describe({"dtype": "float32"})
    assert json.loads((tmp_path / "cache" / "identity.json").read_text()) == {"dtype": "float32"}
    assert cache.parts() == []


def test_the_last_use_is_noted(tmp_path):
    cache = Cache(str(tmp_path / "cache"))
    assert cache.last_use() is None
    cache.used("reference")
    when, role = cache.last_use()
    assert time.time() - 60 < when <= time.time()
    assert role == "reference"


# Looking up which keys have values


def test_found_is_what_some_part_holds(tmp_path):
    cache = Cache(str(tmp_path / "cache"))
    keys = [bytes(KEY_BYTES), b"\0" * 15 + b"\1", b"\1" + b"\0" * 15, b"\xff" * 16, *some_keys(100)]
    for part in (keys[:60], keys[40:90], keys[:90:2]):
        cache.write(part, values_of(part))
    wanted = sorted_keys({*keys[::3], b"elsewhere.......", b"\xff" * 15 + b"\xfe"})
    found = cache.find(wanted)
    assert to_bytes(wanted[found.have]) == [k for k in to_bytes(wanted) if k in keys[:90]]
    assert found.damaged == []


def test_nothing_is_found_in_an_empty_cache_and_nothing_wanted_is_found_anywhere(tmp_path):
    cache = Cache(str(tmp_path / "none"))
    assert cache.find(sorted_keys(some_keys(3))).have.tolist() == [False] * 3
    cache.write(some_keys(3), values_of(some_keys(3)))
    assert len(cache.find(np.empty(0, KEY)).have) == 0


def test_parts_that_cannot_help_are_not_read(tmp_path):
    cache = Cache(str(tmp_path))
    names = [cache.write([bytes([n]) * 16], [np.zeros(1, np.float32)]) for n in range(10)]
    (tmp_path / names[2]).write_bytes(b"unreadable")
    wanted = sorted_keys([bytes([7]) * 16, bytes([4]) * 15 + b"\0"])
    assert cache.may_hold(wanted) == [names[4], names[7]]
    assert cache.find(wanted).have.tolist() == [False, True]
    assert cache.find(wanted).damaged == []


@pytest.mark.parametrize("where", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
def test_one_flipped_bit_is_found_and_set_aside(tmp_path, where):
    cache = Cache(str(tmp_path))
    keys = some_keys(20)
    good, bad = cache.write(keys[:10], values_of(keys[:10])), cache.write(keys[10:], values_of(keys[10:]))
    content = bytearray((tmp_path / bad).read_bytes())
    content[round(where * (len(content) - 1))] ^= 1
    (tmp_path / bad).write_bytes(content)
    with pytest.raises(DamagedPart, match=bad):
        list(cache.read(bad))
    found = cache.find(sorted_keys(keys))
    assert found.damaged == [bad]
    assert sorted(to_bytes(sorted_keys(keys)[found.have])) == sorted(keys[:10])
    assert cache.parts() == [good]
    assert (tmp_path / "damaged" / bad).read_bytes() == content  # kept, for whoever wants to know
    cache.write(keys[10:], values_of(keys[10:]))
    assert cache.find(sorted_keys(keys)).have.all()


# Compaction


def contents(cache):
    """Every row that the parts hold."""
    return [(row["key"], tuple(row["logps"])) for n in cache.parts() for t in cache.read(n) for row in t.to_pylist()]


def overlapping_parts(folder, parts=12):
    """Parts of 50 keys of which the next one has half again."""
    cache, keys = Cache(str(folder)), some_keys(25 * (parts + 1))
    for n in range(parts):
        mine = keys[25 * n : 25 * n + 50]
        cache.write(mine, values_of(mine))
    return cache, {k: tuple(v.tolist()) for k, v in zip(keys, values_of(keys), strict=True)}


@pytest.mark.parametrize(("part_bytes", "memory"), [(10**9, 10**9), (4000, 10**9), (4000, 8000), (1500, 1), (10**9, 1)])
def test_compaction_keeps_every_key_once(tmp_path, part_bytes, memory):
    cache, expected = overlapping_parts(tmp_path)
    done = compact(cache, part_bytes, memory)
    found = contents(cache)
    assert len(found) == len(expected) == done.rows < done.rows_before == 600
    assert dict(found) == expected
    assert (done.parts_before, done.parts) == (12, len(cache.parts()))
    assert {p.name for p in tmp_path.iterdir()} == set(cache.parts())
    ranges = sorted(name.split("-")[:2] for name in cache.parts())
    assert all(a[1] < b[0] for a, b in pairwise(ranges))  # and each in one place
    again = compact(cache, part_bytes, memory)
    assert (again.rows, dict(contents(cache))) == (done.rows, expected)


def test_compaction_drops_what_is_damaged(tmp_path):
    cache, expected = overlapping_parts(tmp_path, parts=2)
    name = cache.write([b"x" * 16], [np.zeros(1, np.float32)])
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    done = compact(cache)
    assert done.damaged == [name]
    assert dict(contents(cache)) == expected


def test_an_empty_cache_is_compact(tmp_path):
    assert compact(Cache(str(tmp_path / "none"))) == (0, 0, 0, 0, [])


def test_what_was_compacted_while_it_was_read_is_found_elsewhere(tmp_path, monkeypatch):
    """The list of parts is one that a compaction has made old."""
    cache, expected = overlapping_parts(tmp_path)
    old = cache.parts()
    compact(cache)
    lists = iter([old])
    monkeypatch.setattr(cache, "parts", lambda: next(lists, None) or Cache(cache.where).parts())
    assert cache.find(sorted_keys(expected)).have.all()
    with pytest.raises(GonePart, match="run the same command again"):
        cache.open(old[0])


# Crashes


@pytest.mark.parametrize("cut", [False, True])
def test_a_crash_anywhere_leaves_whole_parts_and_loses_no_row(tmp_path, monkeypatch, cut):
    extra = [b"new." * 4]
    there = [overlapping_parts(tmp_path / str(n), parts=4) for n in range(100)]

    def work(n):
        there[n][0].write(extra, values_of(extra))
        compact(there[n][0], 2000, 4000)

    n = 0
    for n in every_crash(monkeypatch, work, cut):
        cache, expected = there[n]
        found = dict(contents(cache))  # every part verifies
        assert {k: v for k, v in found.items() if k not in extra} == expected
        compact(cache)
        assert dict(contents(cache)) == found
        assert len(contents(cache)) == len(found)
    assert n > 20
