"""Every type that transformers maps is right, or refused with the true reason, and stands so in the table for users."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from tests.dpo.lm.families import (
    ALIKE,
    FLOAT32_ALONE,
    LOOKS_AHEAD,
    Verdict,
    alone,
    sequences,
    table,
    verdict,
    written_table,
)
from tests.dpo.lm.kinds import NOT_BUILT, TYPES, tiny_folder

TWELVE = (
    "llama", "mixtral", "qwen3_moe", "deepseek_v3", "gpt_neox", "gemma3_text", "phi3 with longrope", "mamba2",
    "gpt_oss", "bloom", "olmoe", "falcon_h1",
)  # fmt: skip
BUILT = [kind for kind in TYPES if kind not in NOT_BUILT]


@pytest.fixture(scope="module")
def verdict_on(tmp_path_factory):
    """The verdicts, each made once."""
    return cache(lambda name: verdict(name, tmp_path_factory.mktemp("model")))


def is_right(found: Verdict) -> None:
    """Fail unless a model's numbers are those of a plain forward pass, or it is refused for what is so."""
    if found.outcome == "refused":
        assert LOOKS_AHEAD in found.reason and found.ahead, found.reason
        return
    assert not found.ahead
    assert found.evaluated <= ALIKE
    assert found.trained <= ALIKE
    assert found.narrow == found.way


def row(outcome: str) -> list[str]:
    """The types in a row of the table for users."""
    (line,) = [line for line in written_table().splitlines() if line.startswith(f"| **{outcome}**")]
    return line.split(" | ")[-1].strip(" |").split(", ")


@pytest.mark.slow
@pytest.mark.parametrize("name", TWELVE)
def test_twelve_kinds_are_right(verdict_on, name):
    found = verdict_on(name)
    is_right(found)
    assert found.outcome != "refused"
    if name in TYPES:  # no variant of a type
        assert name in row(found.outcome)


@pytest.mark.long
@pytest.mark.parametrize("kind", BUILT)
def test_every_type_is_right_or_refused(verdict_on, kind):
    is_right(verdict_on(kind))


@pytest.mark.long
@pytest.mark.parametrize("kind", sorted(FLOAT32_ALONE))
def test_it_is_the_library_that_takes_float32_alone(tmp_path, kind):
    network = AutoModelForCausalLM.from_pretrained(tiny_folder(tmp_path, kind), dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="dtype"):
        alone(network, sequences())


@pytest.mark.long
def test_the_table_for_users_is_what_was_found(verdict_on):
    assert written_table() == table({kind: verdict_on(kind).outcome for kind in BUILT})


def test_the_table_has_every_type_of_this_library_once():
    version = written_table().split()[1].rstrip(",")
    if version != transformers.__version__:
        pytest.skip(f"the table is that of transformers {version}")
    names = [
        name for line in written_table().splitlines()[4:] for name in line.split(" | ")[-1].strip(" |").split(", ")
    ]
    assert sorted(names) == TYPES
    assert {*NOT_BUILT} <= {*AutoModelForCausalLM._model_mapping._model_mapping}
