"""Adapters through the line: what the reference is, what is scored and compared, what goes on."""

import json
import math
import re

import pytest
import torch
from peft import PeftModel

from tests.dpo.lm.adapters import lora
from tests.pipeline.adapted import NEW, first_loss, first_rows, prepared, told, whole, with_head
from tests.pipeline.lab import losses

pytestmark = pytest.mark.group


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("adapted") / "lab")


# The reference of each start, by the name that a configuration gives it


def merged():
    return lora(whole()).merge_and_unload()


STARTS = {
    "base, whole": ((), whole),
    "new adapter": (NEW, whole),
    "trained adapter": (("policy.adapter.path=trained",), lambda: lora(whole())),
    "new adapter on the merged one": (("policy.path=merged", *NEW), lambda: merged()),
    "trained adapter with a head": (("policy.adapter.path=with-head",), lambda: with_head(whole())),
}
REFERENCES = {  # the model that each is, given the policy's base; "narrow" has the base's weights in bfloat16
    "start": None,
    "base": lambda base: base,
    "trained": lora,
    "merged": lambda _: merged(),
    "other": lambda base: lora(base, seed=5),
    "narrow": lambda _: with_weights(whole(), whole(torch.bfloat16)),
}
# What the guard compares, a row a start, a column a reference; "a" (apart): the gap is said.
COMPARED = {
    "base, whole": "s s a a a a",
    "new adapter": "s s a a a a",
    "trained adapter": "s b s a a a",
    "new adapter on the merged one": "s s a s a a",
    "trained adapter with a head": "s b a a a a",
}
NO_GAP = [("trained adapter", "merged")]  # nothing is compared, and yet it is the same function
CELLS = [(start, reference) for start in STARTS for reference in REFERENCES]
SOME = {
    ("trained adapter", "start"),
    ("trained adapter", "base"),
    ("trained adapter", "other"),
    ("new adapter", "base"),
}


def with_weights(network, source):
    """The network with the weights of another one; buffers, as those of rotary positions, stay its own."""
    with torch.no_grad():
        for own, other in zip(network.parameters(), source.parameters(), strict=True):
            own.copy_(other)
    return network


def overridden(folder, *words):
    """Overrides with the names of folders made paths."""
    named = r"=(trained|other|with-head|merged|narrow)$"
    return [re.sub(named, lambda found: f"={folder / found[1]}", word) for word in words]


@pytest.mark.parametrize(
    ("start", "reference"),
    [pytest.param(*cell, marks=() if cell in SOME else pytest.mark.long) for cell in CELLS],
    ids=[f"{start}; reference {reference}" for start, reference in CELLS],
)
def test_each_start_with_each_reference(lab, folder, start, reference):
    keys, policy = STARTS[start]
    name = re.sub(r"\W+", "-", f"{start}-{reference}")
    words = overridden(folder, *keys, f"reference.model={reference}", f"run.name={name}")
    compared = COMPARED[start].split()[list(REFERENCES).index(reference)]
    assert lab.call(told, folder, *words)[2][0] == compared
    summary = lab.line(folder, *words, until="train")
    assert isinstance(summary, dict), summary
    first = policy()
    base = merged() if "merged" in start else whole()
    other = policy() if reference == "start" else REFERENCES[reference](base)
    loss = first_loss(first, other, first_rows(folder / "runs" / name))
    assert summary["loss_first"] == pytest.approx(loss, abs=2e-6)
    if compared == "s" or (start, reference) in NO_GAP:
        assert summary["loss_first"] == pytest.approx(math.log(2), abs=2e-6)
    else:
        assert abs(summary["loss_first"] - math.log(2)) > 1e-4


def test_pissa_has_no_cell(lab, folder, tmp_path):
    pissa = tmp_path / "pissa"
    lora(whole(), trained=False, init_lora_weights="pissa").save_pretrained(pissa)
    said = lab.line(folder, f"policy.adapter.path={pissa}", "run.name=pissa")
    assert said.startswith("AdapterError") and "changes the base's weights" in said


# What is scored again


def test_new_adapters_and_whole_training_share_one_reference(lab, tmp_path):
    folder = prepared(tmp_path / "lab")
    assert lab.line(folder, *NEW, until="score")["sequences_scored"] == 120
    for number, more in enumerate(
        (
            (*NEW, "policy.adapter.r=8"),
            (*NEW, "policy.adapter.alpha=3"),
            (*NEW, "policy.adapter.use_dora=true", "policy.adapter.init_lora_weights=gaussian"),
            (*NEW, "policy.adapter.target_modules=all-linear", 'policy.adapter.modules_to_save=["lm_head"]'),
            (*NEW, "run.seed=1", "reference.model=base"),
            (),
        )
    ):
        found = lab.line(folder, *more, f"run.name=again{number}", until="score")
        assert (found["sequences_scored"], found["sequences_reused"]) == (0, 120), more


def test_a_trained_adapter_has_a_reference_of_its_own(lab, tmp_path):
    folder = prepared(tmp_path / "lab")
    plain = lab.call(told, folder)[0]
    path = folder / "trained" / "adapter_config.json"
    ours = f"policy.adapter.path={folder / 'trained'}"
    start, reference, _ = lab.call(told, folder, ours, "reference.model=base")
    assert reference == plain != start
    assert lab.call(told, folder, f"reference.model={folder / 'trained'}")[1] == start
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 16}))
    assert lab.call(told, folder, ours)[0] not in (start, plain)


def test_identities_without_adapters_have_nothing_new_in_them(lab, folder):
    """So caches of earlier versions are found: the fingerprint is that of these four entries."""
    from pipeline.models.identity import identity_of
    from pipeline.models.start import Weights

    found = identity_of(Weights(folder / "base", "some digest"), "float32")[1]
    assert found.keys() == {"weights", "config", "dtype", "scorer"}


# The guard


def test_an_adapter_that_changes_nothing_ends_the_run(lab, tmp_path):
    folder = prepared(tmp_path / "lab")
    lora(whole(), scale=1e-9).save_pretrained(folder / "weak")
    said = lab.line(folder, f"policy.adapter.path={folder / 'weak'}", until="train")
    assert said.startswith("InputError: The adapter of policy.adapter.path changes nothing")


def test_the_base_is_compared_with_the_adapter_off(lab, tmp_path):
    """Where the base's cached log-probs are another model's, the guard finds it."""
    folder = prepared(tmp_path / "lab")
    words = (f"policy.adapter.path={folder / 'trained'}", "reference.model=base")
    base = lab.call(told, folder, *words)[1]
    other = lab.call(told, folder, f"policy.path={folder / 'narrow'}")[0]
    assert (
        lab.line(folder, f"policy.path={folder / 'narrow'}", "run.name=narrow", until="score")["sequences_scored"]
        == 120
    )
    (folder / "workspace" / "cache" / other).rename(folder / "workspace" / "cache" / base)
    said = lab.line(folder, *words, until="train")
    assert said.startswith("InputError: Before the first update, policy and cached reference differ by"), said


# Keeping on


def test_sft_trains_the_adapter_and_base_still_means_the_base(lab, tmp_path):
    folder = prepared(tmp_path / "lab")
    sft = ("sft.epochs=1", "sft.batch_pairs=16", "sft.learning_rate=1e-2")
    found = lab.line(folder, *NEW, *sft, until="train")
    assert (found["sequences_scored"], found["loss_first"]) == (120, pytest.approx(math.log(2), abs=2e-6))
    (trained,) = (folder / "workspace" / "sft").glob("*/model")
    assert {path.name for path in trained.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    based = lab.line(folder, *NEW, *sft, "reference.model=base", "run.name=based", until="train")
    assert based["sequences_scored"] == 120 and abs(based["loss_first"] - math.log(2)) > 1e-4
    policy = PeftModel.from_pretrained(whole(), trained).eval()
    loss = first_loss(policy, whole(), first_rows(folder / "runs" / "based"))
    assert based["loss_first"] == pytest.approx(loss, abs=2e-6)


@pytest.mark.parametrize(
    "stage", [pytest.param(0, marks=pytest.mark.long), pytest.param(1, marks=pytest.mark.long), 2, 3]
)
def test_a_killed_training_goes_on_bit_for_bit(lab, tmp_path, stage):
    folder = prepared(tmp_path / "lab")
    words = (*NEW, f"deepspeed.stage={stage}", "policy.adapter.lora_plus_ratio=4")
    assert lab.line(folder, *words)["steps"] == 6
    assert lab.line(folder, *words, "run.name=killed", stop_at=3) == "stopped"
    (checkpoint,) = (folder / "runs" / "killed" / "checkpoints").glob("*-00000002")
    assert json.loads((checkpoint / "manifest.json").read_text())["counts"]["base"]
    trained = 2 * (64 * 4 + 4 * 64) + 2 * (64 * 4 + 4 * 32)
    size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    assert size < 1.05 * 12 * trained + 200_000
    assert lab.line(folder, *words, "run.name=killed")["steps"] == 6
    assert losses(folder, "killed") == losses(folder)
    files = [folder / "runs" / name / "weights" / "adapter_model.safetensors" for name in ("base", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert losses(folder)[-1] < math.log(2)
