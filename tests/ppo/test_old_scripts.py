"""Loops of scripts for old TRL, unchanged but for the library: their numbers are those that TRL 0.11.4 gave."""

import json
from pathlib import Path

import pytest

import ppo
from tests.ppo.old_scripts import SCRIPTS
from tests.ppo.trials import QUIET

pytestmark = QUIET
THEIRS = json.loads((Path(__file__).parent / "fixtures" / "old_scripts.json").read_text())["results"]


@pytest.mark.parametrize("name", sorted(SCRIPTS.keys() - {"t5"}))
@pytest.mark.filterwarnings("ignore:optimize_cuda_cache is taken")
def test_a_script_gives_what_it_gave(name):
    if name in ("stack_llama", "multi_adapter"):
        pytest.importorskip("peft")
    found = SCRIPTS[name](ppo)
    assert len(found) == len(THEIRS[name])
    for ours, theirs in zip(found, THEIRS[name], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=2e-6)


def test_an_encoder_decoder_also_counts_its_first_token():
    """TRL masks it, so that its KL, a sum over tokens, is that of three tokens of four."""
    for ours, theirs in zip(SCRIPTS["t5"](ppo), THEIRS["t5"], strict=True):
        assert ours["ppo/mean_scores"] == pytest.approx(theirs["ppo/mean_scores"])
        assert ours["objective/kl"] > 1.1 * theirs["objective/kl"]
