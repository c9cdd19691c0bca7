"""Records as JSON that every language reads."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo.lm.whole_folder import to_json

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
