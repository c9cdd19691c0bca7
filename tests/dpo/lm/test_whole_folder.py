"""Records as JSON that every language reads, written whole by whoever writes at the same time."""

import json
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo.lm.whole_folder import to_json, write_whole

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
def test_any_record_is_json_and_loses_no_number(value):
    found = json.loads(to_json(value), parse_constant=pytest.fail)

    def same(a, b):
        if isinstance(a, float) and not math.isfinite(a):
            return b is None
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        if isinstance(a, list):
            return len(a) == len(b) and all(map(same, a, b))
        return a == b

    assert same(value, found)


def test_writers_with_one_process_id_do_not_take_each_others_files(tmp_path):
    """As two containers that share a disk: both count their processes from 1."""
    path, contents = tmp_path / "record", [bytes([65 + n]) * (4096 + n) for n in range(4)]
    write_whole(path, contents[0])

    def work(number):
        for _ in range(50):
            write_whole(path, contents[number])
            assert path.read_bytes() in contents
        return True

    with ThreadPoolExecutor(len(contents)) as pool:
        assert all(pool.map(work, range(len(contents))))
    assert [each.name for each in tmp_path.iterdir()] == ["record"]
