import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.store.cache import KEY, KEY_BYTES, PROMPT_BYTES, Cache, keys_of, sequence_key


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


def test_keys_of_all_parts_are_sorted_and_come_once(tmp_path):
    cache = Cache(tmp_path / "cache")
    keys = [bytes(KEY_BYTES), b"\0" * 15 + b"\1", b"\1" + b"\0" * 15, *some_keys(100)]
    for part in (keys[:60], keys[40:], keys[::2]):
        cache.write(part, [np.zeros(1, np.float32)] * len(part))
    assert len(cache.parts()) == 3
    assert to_bytes(cache.keys()) == sorted(set(keys))


def test_an_empty_cache_has_no_keys(tmp_path):
    assert len(Cache(tmp_path / "none").keys()) == 0
    assert Cache(tmp_path / "none").keys().dtype == KEY


def test_what_was_written_is_read(tmp_path):
    cache = Cache(tmp_path)
    keys = some_keys(10)
    values = {k: np.arange(i, dtype=np.float32) / -7 for i, k in enumerate(keys)}
    cache.write(keys, [values[k] for k in keys])
    (table,) = cache.read(cache.parts()[0])
    assert table["key"].to_pylist() == sorted(keys)
    for k, logps in zip(table["key"].to_pylist(), table["logps"], strict=True):
        assert np.array_equal(logps.values.to_numpy(), values[k])


def test_the_same_sequences_make_the_same_file(tmp_path):
    """A retry, whose batch came in another order, replaces the part by itself."""
    cache = Cache(tmp_path)
    keys = some_keys(10)
    values = [np.full(3, i, np.float32) for i in range(10)]
    cache.write(keys, values)
    (path,) = cache.parts()
    before = path.read_bytes()
    cache.write(keys[::-1], values[::-1])
    assert cache.parts() == [path]
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # and nothing beside it


def test_half_a_part_is_no_part(tmp_path):
    """What a killed writer leaves has another name."""
    cache = Cache(tmp_path)
    (tmp_path / ".0123.77").write_bytes(b"PAR1")
    assert cache.parts() == []
    assert len(cache.keys()) == 0


def test_the_identity_stands_beside_the_parts(tmp_path):
    cache = Cache(tmp_path / "cache")
    cache.describe('{"dtype": "float32"}\n')
    assert (tmp_path / "cache" / "identity.json").read_text() == '{"dtype": "float32"}\n'
    assert cache.parts() == []


def test_only_the_key_column_is_read_for_keys(tmp_path):
    """A part whose other column is unreadable still has its keys."""
    pq.write_table(pa.table({"key": pa.array(some_keys(3), pa.binary(KEY_BYTES))}), tmp_path / "part.parquet")
    assert len(Cache(tmp_path).keys()) == 3
