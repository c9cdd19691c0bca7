"""An Arrow batch -> the bytes of each of its rows, without converting them: a small file may hold large rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

NUMBER = 8  # bytes that are counted for a number, and for each entry of a list
TEXT = {pa.string(), pa.binary(), pa.large_string(), pa.large_binary()}
VIEWS = {pa.string_view(), pa.binary_view()}
AS_BYTES = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}


def row_bytes(batch: pa.RecordBatch) -> np.ndarray:
    """Return about the bytes of each row as Python values: those of texts, and eight a number and list entry.

    Raises:
        pa.ArrowInvalid: a value points behind its dictionary, as in a damaged file: Arrow reads it without a look.
    """
    return sum((_sizes(column) for column in batch.columns), np.zeros(batch.num_rows, np.int64))


def _sizes(array: pa.Array) -> np.ndarray:
    kind = array.type
    if kind in TEXT:
        return _numbers(pc.call_function("binary_length", [array]).fill_null(0))
    if kind in VIEWS:  # 16 bytes a value, of which the first four are its length
        views = np.frombuffer(array.buffers()[1], np.int32).reshape(-1, 4)
        return views[array.offset : array.offset + len(array), 0].astype(np.int64)
    if pa.types.is_dictionary(kind):
        bounds = pc.call_function("min_max", [array.indices]).as_py()
        if bounds["max"] is not None and not 0 <= bounds["min"] <= bounds["max"] < len(array.dictionary):
            raise pa.ArrowInvalid(f"no value {bounds['max']} among the {len(array.dictionary)} of a dictionary")
        sizes = np.append(_sizes(array.dictionary), 0)
        return sizes[_numbers(array.indices.cast(pa.int64()).fill_null(len(sizes) - 1))]
    if pa.types.is_run_end_encoded(kind):
        rows = np.arange(array.offset, array.offset + len(array))
        return _sizes(array.values)[np.searchsorted(_numbers(array.run_ends), rows, side="right")]
    if pa.types.is_struct(kind):
        return sum((_sizes(array.field(n)) for n in range(kind.num_fields)), np.zeros(len(array), np.int64))
    if pa.types.is_fixed_size_list(kind):
        return _of_entries(_sizes(array.values), (array.offset + np.arange(len(array) + 1)) * kind.list_size)
    if pa.types.is_map(kind):
        return _of_entries(_sizes(array.keys) + _sizes(array.items), _numbers(array.offsets))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _of_entries(_sizes(array.values), _numbers(array.offsets))
    return np.full(len(array), NUMBER, np.int64)


def _numbers(array: pa.Array) -> np.ndarray:
    return array.to_numpy(zero_copy_only=False).astype(np.int64)


def _of_entries(sizes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The sums of the sizes of the entries between offsets."""
    before = np.concatenate([[0], np.cumsum(sizes + NUMBER)])
    return before[offsets[1:]] - before[offsets[:-1]]


def as_bytes(array: pa.Array) -> pa.Array:
    """Return the same array with bytes in place of texts: it can be validated apart from its UTF-8."""
    kind = _as_bytes(array.type)
    if kind == array.type:
        return array
    # A view makes a column without values as long as the rows, and not as the entries of the list that it is in.
    return array.cast(kind) if _has_nulls(kind) else array.view(kind)


def _has_nulls(kind: pa.DataType) -> bool:
    """Tell whether a type has the type of columns without any value in it."""
    if pa.types.is_null(kind):
        return True
    if pa.types.is_dictionary(kind):
        return _has_nulls(kind.value_type)
    return any(_has_nulls(kind.field(number).type) for number in range(kind.num_fields))


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    def inner(field: pa.Field) -> pa.Field:
        return field.with_type(_as_bytes(field.type))

    if kind in AS_BYTES:
        return AS_BYTES[kind]
    if pa.types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _as_bytes(kind.value_type), kind.ordered)
    if pa.types.is_struct(kind):
        return pa.struct([inner(kind.field(number)) for number in range(kind.num_fields)])
    if pa.types.is_map(kind):
        return pa.map_(inner(kind.key_field), inner(kind.item_field), kind.keys_sorted)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(inner(kind.value_field), kind.list_size)
    if pa.types.is_large_list(kind):
        return pa.large_list(inner(kind.value_field))
    return pa.list_(inner(kind.value_field)) if pa.types.is_list(kind) else kind
