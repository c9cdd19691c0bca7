"""A group that scores, on real process groups with the real DeepSpeed, compared with one actor of the pool."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from dpo.lm.logprobs import Way
from pipeline.errors import InputError
from pipeline.models import group_scorer
from pipeline.models.device import Device
from pipeline.models.group_scorer import score_share
from pipeline.models.scorer import Scorer
from pipeline.store.cache import Cache
from pipeline.store.needed import all_keys, key_columns, read_sequences, wanted_rows
from pipeline.worker.unscored import Scored, Unscored
from tests.pipeline.files import keys_in, parts_of
from tests.pipeline.worker.group import Group
from tests.pipeline.worker.small_run import LLAMA, VOCABULARY, X_ROTARY, make_job, make_rows, model_folder

pytestmark = pytest.mark.group

CPU = torch.device("cpu")
PAIRS, SIZES = 20, [9, 4, 7]
BATCH_TOKENS = 50  # several micro-batches a round


class Case(NamedTuple):
    """What is scored, and the values that one actor of the pool writes."""

    model: Path
    parts: list[Path]
    keys: np.ndarray
    values: dict[bytes, np.ndarray]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return parts_of(tmp_path_factory.mktemp("tokens") / "parts", make_rows(PAIRS, 0), SIZES)


@pytest.fixture(scope="module")
def case(model, parts, tmp_path_factory):
    return case_of(model, parts, tmp_path_factory.mktemp("pool") / "cache")


def case_of(model: Path, parts: list[Path], folder: Path, dtype: str = "float32") -> Case:
    columns = key_columns(parts)
    keys = all_keys(columns)
    scorer = Scorer(str(model), str(folder), dtype, 0, BATCH_TOKENS, True, Device("cpu", 1))
    for item in wanted_rows(parts, columns, keys):
        for table in read_sequences(pa.Table.from_pylist([item])):
            scorer(table)
    assert len(keys) == 2 * PAIRS
    return Case(model, parts, keys, scorer.cache.values(keys))


def scoring(
    folder: Path, case: Case, stage: int, batch_sequences: int = 7, parts: list[Path] | None = None, **changes: Any
) -> tuple[Any, Unscored, torch.device]:
    """The arguments of `score_share`: all of the case's sequences, or those of some parts, into `folder`/cache."""
    job = make_job(folder / "job", case.model, [[]], stage, **changes)
    names = [str(path) for path in parts or case.parts]
    return job, Unscored(names, str(folder / "cache"), batch_sequences, BATCH_TOKENS), CPU


def check(folder: Path, case: Case, keys: np.ndarray, tolerance: float = 1e-5) -> Cache:
    """Every wanted sequence is cached once, with the pool's values."""
    cache = Cache(str(folder / "cache"))
    assert np.array_equal(keys_in(cache), keys)
    assert cache.rows() == len(keys), "a sequence was scored twice"
    found = cache.values(keys)
    assert all(found[key].dtype == np.float32 and len(found[key]) == len(case.values[key]) for key in found)
    assert max(float(np.abs(found[key] - case.values[key]).max()) for key in found) <= tolerance
    return cache


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_group_writes_what_the_pool_writes(groups, case, tmp_path, stage):
    answers = groups.call(2, score_share, *scoring(tmp_path, case, stage))
    assert all(isinstance(answer, Scored) and answer.unshared is None for answer in answers)
    check(tmp_path, case, case.keys)


def test_each_rank_writes_its_part_of_a_round(groups, case, tmp_path):
    groups.call(2, score_share, *scoring(tmp_path, case, 3, batch_sequences=100))
    cache = check(tmp_path, case, case.keys)
    sizes = [sum(table.num_rows for table in cache.read(name)) for name in cache.parts()]
    assert len(sizes) == 2 and min(sizes) > len(case.keys) / 4


@pytest.mark.parametrize("stage", [1, 3])
def test_in_bfloat16_too(groups, parts, model, tmp_path, stage):
    """Up to rounding: kernels group sums by the shape of a batch."""
    case = case_of(model, parts, tmp_path / "pool", "bfloat16")
    groups.call(2, score_share, *scoring(tmp_path, case, stage, dtype="bfloat16"))
    check(tmp_path, case, case.keys, tolerance=0.1)


def test_a_model_whose_prompts_have_a_row_each(groups, parts, tmp_path):
    case = case_of(model_folder(tmp_path / "x", X_ROTARY), parts, tmp_path / "pool")
    groups.call(2, score_share, *scoring(tmp_path, case, 3))
    check(tmp_path, case, case.keys)


def test_prompts_that_are_not_to_be_shared(groups, case, tmp_path):
    answers = groups.call(2, score_share, *scoring(tmp_path, case, 3, may_share=False))
    assert {answer.unshared for answer in answers} == {"train.share_prompts = false"}
    check(tmp_path, case, case.keys)


def test_one_missing_sequence_keeps_no_rank_waiting(groups, case, tmp_path):
    known = case.keys[:-1]
    cache = Cache(str(tmp_path / "cache"))
    cache.write([key.tobytes() for key in known], [case.values[key.tobytes()] for key in known])
    (written,) = cache.parts()
    groups.call(2, score_share, *scoring(tmp_path, case, 3), seconds=60)
    check(tmp_path, case, case.keys)
    (added,) = set(cache.parts()) - {written}
    assert [row["key"] for table in cache.read(added) for row in table.to_pylist()] == [case.keys[-1].tobytes()]


def test_nothing_missing_is_soon_done(groups, case, tmp_path):
    Cache(str(tmp_path / "cache")).write(list(case.values), list(case.values.values()))
    groups.call(2, score_share, *scoring(tmp_path, case, 3), seconds=60)
    check(tmp_path, case, case.keys)


def score_until_killed(writes: int, job: Any, work: Unscored, device: torch.device) -> None:
    """Run on a rank: it is killed where it is about to write once more than so many times."""
    write, done = Cache.write, 0

    def write_or_die(cache: Cache, keys: list[bytes], logps: list[np.ndarray]) -> str:
        nonlocal done
        if done == writes:
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1
        return write(cache, keys, logps)

    Cache.write = write_or_die  # type: ignore[method-assign] - of a process that ends here
    score_share(job, work, device)


def test_a_group_that_is_killed_goes_on(groups, case, tmp_path):
    """Another group computes what is missing and nothing else."""
    arguments = scoring(tmp_path, case, 3, batch_sequences=4)
    killed = Group(2, tmp_path / "killed")
    with pytest.raises(AssertionError, match="ended with status"):
        killed.call(score_until_killed, 2, *arguments)
    killed.close()
    cache = Cache(str(tmp_path / "cache"))
    before = set(cache.parts())
    assert 0.25 * len(case.keys) < cache.rows() < 0.75 * len(case.keys)
    groups.call(2, score_share, *arguments)
    assert before < set(cache.parts())
    check(tmp_path, case, case.keys)


def score_out_of_memory(job: Any, work: Unscored, device: torch.device) -> str:
    """Run on a rank: the second has no memory left where its first layer is computed. The error's text."""
    computes = LlamaDecoderLayer.forward

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("pretended")

    share_of_round = group_scorer._share_of_round

    def round_without_memory(*arguments: Any) -> Any:
        if dist.get_rank() == 1:
            LlamaDecoderLayer.forward = full
        return share_of_round(*arguments)

    group_scorer._share_of_round = round_without_memory
    try:
        score_share(job, work, device)
    except InputError as error:
        return str(error)
    finally:
        LlamaDecoderLayer.forward = computes
        group_scorer._share_of_round = share_of_round
    return "scored"


def test_one_rank_out_of_memory_ends_all_with_one_sentence(case, tmp_path):
    group = Group(2, tmp_path / "group")  # of its own: a thread of its first rank waits for the second
    answers = group.call(score_out_of_memory, *scoring(tmp_path, case, 3), seconds=50)
    group.close()
    assert answers[0] == answers[1]
    assert answers[0].startswith("Memory ran out while the workers scored, on rank 1 of 2. Lower reference.batch_tok")


def test_the_group_and_the_pool_share_prompts_alike(case):
    """Else the values above would agree for a reason of no interest."""
    config = json.loads((case.model / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["vocab_size"]) == (LLAMA["model_type"], VOCABULARY)
    scorer = Scorer(str(case.model), "unused", "float32", 0, BATCH_TOKENS, True, Device("cpu", 1))
    assert scorer.model.way == Way()


def score_with_nan(job: Any, work: Unscored, device: torch.device) -> str:
    """One rank's log-probs are NaN; what each rank says."""
    share = group_scorer._share_of_round

    def spoilt(*args: Any) -> Any:
        keys, logps = share(*args)
        return keys, [values * np.nan for values in logps] if dist.get_rank() == 1 else logps

    group_scorer._share_of_round = spoilt
    try:
        score_share(job, work, device)
    except InputError as error:
        return str(error)
    finally:
        group_scorer._share_of_round = share
    return "scored"


def test_what_is_not_finite_on_one_rank_ends_the_scoring_on_all(tmp_path: Path, case: Case) -> None:
    group = Group(2, tmp_path / "group")  # of its own: a thread of its first rank waits for the second
    said, same = group.call(score_with_nan, *scoring(tmp_path, case, 2), seconds=50)
    group.close()
    assert said == same and "log-probs that are infinite or NaN" in said
    assert all(np.isfinite(values).all() for values in Cache(str(tmp_path / "cache")).values(case.keys).values())
