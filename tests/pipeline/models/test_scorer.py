import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
import torch

from dpo.lm.batch import collate, collate_shared
from dpo.lm.logprobs import LogprobModel
from dpo.lm.models import freeze
from dpo.lm.sequences import TokenSequence
from dpo.lm.weights import canonical_tensors, write_weights
from pipeline.errors import InputError
from pipeline.models import device
from pipeline.models.device import Device, device_of
from pipeline.models.scorer import Scorer, Verifier, batches, score_all
from pipeline.store.cache import KEY, Cache, keys_of
from pipeline.store.needed import SEQUENCES, all_keys, key_columns, read_sequences, wanted_rows
from pipeline.upkeep import exceeds
from tests.dpo.tiny import sequence, tiny_model
from tests.pipeline.files import fill_cache, keys_in, parts_of, token_rows, write_part

NO_KEYS = np.empty(0, KEY)


def sequences_of(rows):
    """Every sequence of the rows, each once: key -> (prompt, completion, mask)."""
    names = ("prompt_ids", "{}_ids", "{}_mask")
    return {
        row[f"{side}_key"]: tuple(row[name.format(side)].tolist() for name in names)
        for row in rows
        for side in ("chosen", "rejected")
    }


def read(items):
    """All that the items ask for: the tables that are read for them."""
    return [table for item in items for table in read_sequences(pa.Table.from_pylist([item]))]


def contents(tables):
    rows = [row for table in tables for row in table.to_pylist()]
    found = {row["key"]: (row["prompt_ids"], row["completion_ids"], row["mask"]) for row in rows}
    assert len(found) == len(rows), "a sequence was read twice"
    return found


# What is missing, and reading it


def missing(parts, known):
    """What is to be read where these keys are known, and how many sequences are."""
    columns = key_columns(parts)
    wanted = all_keys(columns)
    have = np.isin(wanted, known)
    return wanted_rows(parts, columns, wanted[~have]), int(have.sum())


@pytest.mark.parametrize("sizes", [[30], [7, 1, 12, 10], [1] * 30])
def test_with_an_empty_cache_every_sequence_is_read_once(tmp_path, sizes):
    rows = token_rows(30)
    items, reused = missing(parts_of(tmp_path / "parts", rows, sizes), NO_KEYS)
    assert reused == 0
    assert len(sequences_of(rows)) < 60, "some sequences are in several pairs"
    assert contents(read(items)) == sequences_of(rows)


def test_what_the_cache_has_is_not_read(tmp_path):
    rows = token_rows(30)
    known = keys_in(fill_cache(tmp_path / "cache", rows[:12], parts=3))
    items, reused = missing(parts_of(tmp_path / "parts", rows, [10, 20]), known)
    expected = {k: v for k, v in sequences_of(rows).items() if k not in sequences_of(rows[:12])}
    assert contents(read(items)) == expected
    assert reused == len(sequences_of(rows[:12])) == len(sequences_of(rows)) - len(expected)


def test_keys_of_other_data_do_not_help(tmp_path):
    rows = token_rows(10)
    known = keys_in(fill_cache(tmp_path / "cache", token_rows(40, seed=9)[1:3], parts=1))
    items, reused = missing(parts_of(tmp_path / "parts", rows, [10]), known)
    assert (contents(read(items)), reused) == (sequences_of(rows), 0)


def test_nothing_is_missing_from_a_full_cache(tmp_path):
    rows = token_rows(10)
    known = keys_in(fill_cache(tmp_path / "cache", token_rows(10) + token_rows(40, seed=9), parts=2))
    assert missing(parts_of(tmp_path / "parts", rows, [5, 5]), known) == ([], len(sequences_of(rows)))


def test_no_parts():
    assert missing([], NO_KEYS) == ([], 0)


def test_a_part_of_which_one_side_is_wanted(tmp_path):
    rows = token_rows(6)[1:3]
    path = write_part(tmp_path / "part.parquet", rows)
    for side, code in (("chosen", 0), ("rejected", 1)):
        (table,) = read([{"path": str(path), "rows": np.array([2 + code], np.int32).tobytes()}])
        assert table.schema.equals(SEQUENCES)
        assert table["key"].to_pylist() == [rows[1][f"{side}_key"]]
        assert table["completion_ids"].to_pylist() == [rows[1][f"{side}_ids"].tolist()]


def test_sequences_stand_in_the_order_of_their_keys_and_so_by_prompt(tmp_path):
    (table,) = read(missing(parts_of(tmp_path / "parts", token_rows(30), [30]), NO_KEYS)[0])
    keys = table["key"].to_pylist()
    assert keys == sorted(keys)
    prompts = [tuple(row["prompt_ids"]) for row in table.to_pylist()]
    runs = [p for n, p in enumerate(prompts) if n == 0 or prompts[n - 1] != p]
    assert len(runs) == len(set(runs)) < len(prompts)


# Scoring


@pytest.fixture(scope="module")
def model():
    return LogprobModel(freeze(tiny_model("llama")))


def some_sequences():
    draw = np.random.default_rng(0)
    return [sequence(draw.integers(0, 23, 1 + i % 4).tolist(), draw.integers(0, 23, 1 + i).tolist()) for i in range(7)]


@pytest.mark.parametrize("batch_tokens", [1, 20, 10_000])
def test_log_probs_come_in_the_order_of_the_sequences(model, batch_tokens):
    sequences = some_sequences()
    for found, one in zip(score_all(model, sequences, 0, batch_tokens), sequences, strict=True):
        alone = collate([one], pad_id=0)
        with torch.no_grad():
            expected = model(alone).logps
        assert found.dtype == np.float32
        assert np.allclose(found, expected.numpy(), atol=1e-5)
        assert (found < -1e-3).all()


def test_only_scored_tokens_have_log_probs(model):
    whole = sequence([1, 2], [3, 4, 5, 6])
    some = whole._replace(mask=[False, True, False, True])
    (full,), (found,) = score_all(model, [whole], 0, 100), score_all(model, [some], 0, 100)
    assert np.allclose(found, full[[1, 3]], atol=1e-6)


def random_sequences(seed):
    """Sequences of a few prompts, some with many completions."""
    draw = random.Random(seed)
    prompts = [[draw.randrange(23) for _ in range(draw.randint(1, 9))] for _ in range(draw.randint(1, 6))]
    return [sequence(draw.choice(prompts), [1] * draw.randint(1, 12)) for _ in range(draw.randint(1, 40))]


@pytest.mark.parametrize(("shared", "row_each"), [(True, False), (True, True), (False, False)])
def test_batches_keep_to_their_tokens(shared, row_each):
    """Every sequence once, and what is laid out within the tokens unless it is one sequence alone."""
    for seed in range(100):
        sequences = random_sequences(seed)
        found = list(batches(sequences, 40, shared, row_each))
        assert sorted(i for members in found for i in members) == list(range(len(sequences)))
        for members in found:
            chosen = [sequences[i] for i in members]
            laid_out = collate_shared(chosen, 0, row_each) if shared else collate(chosen, 0)
            assert laid_out.tokens <= 40 or len(members) == 1


def test_a_prompt_is_computed_once_for_its_completions():
    """Three completions of a prompt of 30 tokens fill 36 of 40; apart they would not fit twice."""
    sequences = [sequence([7] * 30, [1, n]) for n in (2, 3, 4)] + [sequence([8] * 5, [1])]
    assert list(batches(sequences, 40, True, False)) == [[0, 1, 2], [3]]
    assert list(batches(sequences, 42, True, False)) == [[0, 1, 2, 3]]
    assert list(batches(sequences, 40, False, False)) == [[0], [1], [2], [3]]
    assert list(batches(sequences, 33, True, False)) == [[0], [1], [2], [3]]  # 34 with two: torn apart


def test_a_sequence_above_the_batch_runs_alone(model):
    assert [len(v) for v in score_all(model, [sequence([1], [2] * 9), sequence([1], [2])], 0, 4)] == [9, 1]


def test_nothing_to_score(model):
    assert score_all(model, [], 0, 4) == []


def test_the_scorer_writes_one_part_of_the_cache(tmp_path):
    """From a table as it is read to log-probs under the table's keys."""
    network = tiny_model("x-rotary")
    write_weights(tmp_path, canonical_tensors(network.network))
    network.write_config(tmp_path)
    table = pa.table(
        {
            "key": [b"b" * 16, b"a" * 16],
            "prompt_ids": [[1, 2], [3]],
            "completion_ids": [[4, 5, 6], [7, 8]],
            "mask": [[True, False, True], [True, True]],
        },
        schema=SEQUENCES,
    )
    options = str(tmp_path), str(tmp_path / "cache"), "float32", 0, 100, True, Device("cpu", 1)
    answer = Scorer(*options)(table).to_pylist()
    assert [row["sequences"] for row in answer] == [2]
    cache = Cache(str(tmp_path / "cache"))
    (part,) = cache.parts()
    (written,) = cache.read(part)
    rows = {row["key"][:1]: row["logps"] for row in written.to_pylist()}
    sequences = [TokenSequence([1, 2], [4, 5, 6], [True, False, True]), sequence([3], [7, 8])]
    expected = score_all(LogprobModel(freeze(network)), sequences, 0, 100)
    assert np.allclose(rows[b"b"], expected[0], atol=1e-6)
    assert np.allclose(rows[b"a"], expected[1], atol=1e-6)


def test_two_threads_ask_at_once(tmp_path):
    network = tiny_model("x-rotary")
    write_weights(tmp_path, canonical_tensors(network.network))
    network.write_config(tmp_path)
    draw = np.random.default_rng(5)
    tables = []
    for number in range(8):
        prompts, completions = (draw.integers(1, 9, (12, width)).tolist() for width in (3, 6))
        keys = [bytes([number, row]) * 8 for row in range(12)]
        columns = {"key": keys, "prompt_ids": prompts, "completion_ids": completions, "mask": [[True] * 6] * 12}
        tables.append(pa.table(columns, schema=SEQUENCES))
    scorer = Scorer(str(tmp_path), str(tmp_path / "cache"), "float32", 0, 20, True, Device("cpu", 1))
    alone = [scorer.logps(table) for table in tables]
    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(scorer, tables))
    assert [answer["sequences"].to_pylist() for answer in answers] == [[12]] * 8
    for table, expected in zip(tables, alone, strict=True):
        written = scorer.cache.values(np.sort(keys_of(table["key"])))
        assert all(np.array_equal(written[k], e) for k, e in zip(table["key"].to_pylist(), expected, strict=True))


def test_the_verifier_compares_with_the_cache(tmp_path):
    network = tiny_model("x-rotary")
    write_weights(tmp_path, canonical_tensors(network.network))
    network.write_config(tmp_path)
    columns = {"key": [b"b" * 16, b"a" * 16], "prompt_ids": [[1, 2], [3]], "completion_ids": [[4, 5, 6], [7, 8]]}
    table = pa.table({**columns, "mask": [[True] * 3, [True] * 2]}, schema=SEQUENCES)
    options = str(tmp_path), str(tmp_path / "cache"), "float32", 0, 100, True, Device("cpu", 1)
    verifier = Verifier(*options)
    first, second = verifier.logps(table)
    verifier.cache.write(table["key"].to_pylist(), [first + 0.25, second])
    apart = verifier(table).to_pylist()
    assert np.allclose(apart[0]["differences"], [0.25] * 3, atol=1e-6)
    assert np.allclose(apart[1]["differences"], [0.0] * 2, atol=1e-6)


def small_table():
    columns = {"key": [b"b" * 16, b"a" * 16], "prompt_ids": [[1, 2], [3]], "completion_ids": [[4, 5, 6], [7, 8]]}
    return pa.table({**columns, "mask": [[True] * 3, [True] * 2]}, schema=SEQUENCES)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_never_cached(tmp_path, value):
    network = tiny_model("x-rotary")
    tensors = {name: tensor.detach().clone() for name, tensor in canonical_tensors(network.network)}
    tensors[sorted(tensors)[0]].view(-1)[0] = value
    write_weights(tmp_path, tensors.items())
    network.write_config(tmp_path)
    with pytest.raises(InputError, match="are not finite numbers"):
        Scorer(str(tmp_path), str(tmp_path / "cache"), "float32", 0, 100, True, Device("cpu", 1))
    assert not (tmp_path / "cache").exists()


def test_nor_is_what_overflows_in_some_sequences_alone(tmp_path):
    network = tiny_model("x-rotary")
    write_weights(tmp_path, canonical_tensors(network.network))
    network.write_config(tmp_path)
    scorer = Scorer(str(tmp_path), str(tmp_path / "cache"), "float32", 0, 100, True, Device("cpu", 1))
    for parameter in scorer.model.parameters():
        parameter.data.fill_(float("inf"))
    with pytest.raises(InputError, match="log-probs that are infinite or NaN for 2 of 2 sequences"):
        scorer(small_table())
    assert scorer.cache.parts() == []


def test_the_verifier_sees_what_is_not_finite_in_the_cache(tmp_path):
    network = tiny_model("x-rotary")
    write_weights(tmp_path, canonical_tensors(network.network))
    network.write_config(tmp_path)
    verifier = Verifier(str(tmp_path), str(tmp_path / "cache"), "float32", 0, 100, True, Device("cpu", 1))
    first, second = verifier.logps(small_table())
    verifier.cache.write(small_table()["key"].to_pylist(), [first * np.nan, second])
    differences = np.concatenate(verifier(small_table())["differences"].to_pylist())
    assert exceeds(differences, 1e9) and not exceeds(np.zeros(3), 1e-5) and exceeds(np.ones(3), 0.5)


def test_threads_are_shared_out(monkeypatch):
    monkeypatch.setattr(device.os, "cpu_count", lambda: 8)
    assert device_of(cpus=4, processes=1, gpus=0) == Device("cpu", 4)
    assert device_of(cpus=4, processes=4, gpus=0) == Device("cpu", 2)  # so that cores are not claimed twice
    assert device_of(cpus=4, processes=40, gpus=0) == Device("cpu", 1)
    assert device_of(cpus=4, processes=1, gpus=1) == Device("cuda", None)
    assert device_of(cpus=4, processes=1, gpus=3) == Device("cuda", None, 3)
