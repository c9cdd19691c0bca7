import json
import os
from contextlib import suppress

import pytest

from pipeline.claim import FREE, claim, refuse_taken
from pipeline.config import Config
from pipeline.errors import InputError, RunError
from pipeline.place import Place
from tests.pipeline.files import config_file


def place(folder, *overrides, **sections):
    run = {"name": "one", "dir": "runs", "workspace": "workspace"}
    return Place.of(Config.load(config_file(folder, run=run, **sections), list(overrides)))


def claiming(a_place, **options):
    return claim(a_place.config, a_place.run_dir, a_place.workspace, print, **options)


def claimed(a_place, **options):
    """A run that has ended, with its epochs made."""
    with claiming(a_place, **options):
        (a_place.run_dir / "epochs").mkdir(exist_ok=True)
    return a_place.run_dir


def refusal(a_place):
    with pytest.raises(InputError) as error:
        claimed(a_place)
    return str(error.value)


# Claiming a name


def test_opening_makes_the_folders_and_writes_the_settings(tmp_path):
    one = place(tmp_path)
    claimed(one)
    assert one.workspace.is_dir()
    assert sorted(path.name for path in one.run_dir.iterdir()) == ["config.json", "epochs"]
    assert Config.model_validate(json.loads((one.run_dir / "config.json").read_text(encoding="utf-8"))) == one.config
    assert list(one.workspace.iterdir()) == []


def test_the_same_settings_go_on(tmp_path):
    claimed(place(tmp_path))
    claimed(place(tmp_path))


@pytest.mark.parametrize(
    ("section", "key", "override"), [("train", "batch_pairs", "train.batch_pairs=8"), ("loss", "beta", "loss.beta=1")]
)
def test_a_key_that_is_newer_than_a_run_had_its_default(tmp_path, section, key, override):
    one = place(tmp_path)
    claimed(one)
    path = one.run_dir / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    default = settings[section].pop(key)
    path.write_text(json.dumps(settings), encoding="utf-8")
    assert f"{section}.{key} (was {default}, is " in refusal(place(tmp_path, override))
    claimed(place(tmp_path))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("loss.beta=0.2", "loss.beta (was 0.1, is 0.2)"),
        ("train.batch_pairs=8", "train.batch_pairs (was 32, is 8)"),
        ("run.seed=1", "run.seed (was 0, is 1)"),
        ("data.max_length=9", "data.max_length (was 1024, is 9)"),
        ("policy.dim=16", "policy.dim (was 512, is 16)"),
        ("deepspeed.stage=3", "deepspeed.stage (was 2, is 3)"),
    ],
)
def test_a_name_stands_for_one_training(tmp_path, override, said):
    claimed(place(tmp_path))
    assert refusal(place(tmp_path, override)) == (
        f"run.name = 'one' belongs to a run with other settings: {said}. Choose another run.name, or give --restart, "
        "which keeps what is there under earlier/ in the run's folder. Tokens and reference log-probs are still reused."
    )
    claimed(place(tmp_path, override, "run.name=two"))


class Killed(BaseException):
    """What ends a run in the middle."""


@pytest.mark.parametrize("end", [InputError, RunError, KeyboardInterrupt, Killed, None])
def test_a_run_that_made_nothing_claims_nothing_however_it_ended(tmp_path, end):
    one = place(tmp_path)
    with suppress(InputError, RunError, KeyboardInterrupt, Killed), claiming(one):
        if end is not None:
            raise end("the end")
    assert list(one.run_dir.iterdir()) == []
    claimed(place(tmp_path, "train.batch_pairs=8"))
    refusal(place(tmp_path))


def test_settings_that_a_dead_process_left_behind_claim_nothing(tmp_path):
    one = place(tmp_path)
    one.run_dir.mkdir(parents=True)
    (one.run_dir / "config.json").write_text(place(tmp_path).config.model_dump_json(), encoding="utf-8")
    claimed(place(tmp_path, "train.batch_pairs=8"))


def test_settings_that_are_damaged_are_not_guessed(tmp_path):
    path = claimed(place(tmp_path)) / "config.json"
    for content in (b"", b"{", b"\xff", b"[]", b'{"run": 1}', b"null"):
        path.write_bytes(content)
        assert "config.json is damaged" in refusal(place(tmp_path))


# One owner


def test_a_second_process_is_refused_while_the_first_works(tmp_path):
    one = place(tmp_path)
    with claiming(one):
        said = refusal(place(tmp_path, "loss.beta=0.2"))  # whatever its settings are
        assert said.startswith(f"run.name = 'one' is being worked on by process {os.getpid()} on ")
        with pytest.raises(InputError, match="is being worked on"):
            refuse_taken(one.config)
        claimed(place(tmp_path, "run.name=two"))
    refuse_taken(one.config)
    claimed(place(tmp_path))


def test_begun_anew_keeps_what_was_there_under_another_name(tmp_path):
    run_dir = claimed(place(tmp_path))
    for name in ("export", "weights", "checkpoints"):
        (run_dir / name).mkdir()
        (run_dir / name / "file").write_text("first")
    claimed(place(tmp_path, "loss.beta=0.2"), restart=True)
    assert sorted(path.name for path in run_dir.iterdir()) == ["config.json", "earlier", "epochs"]
    kept = run_dir / "earlier" / "1"
    assert sorted(path.name for path in kept.iterdir()) == ["config.json", "export", "weights"]
    assert (kept / "export" / "file").read_text() == "first"
    claimed(place(tmp_path), restart=True)
    assert sorted(path.name for path in (run_dir / "earlier").iterdir()) == ["1", "2"]


def test_every_setting_that_differs_is_named(tmp_path):
    claimed(place(tmp_path))
    assert "loss.beta (was 0.1, is 0.2), train.epochs (was 1, is 2)" in refusal(
        place(tmp_path, "train.epochs=2", "loss.beta=0.2")
    )


def test_another_kind_of_policy_is_another_training(tmp_path):
    claimed(place(tmp_path))
    other = place(tmp_path, policy={"kind": "huggingface", "path": "gpt2"})
    assert "policy.kind (was 'x-transformers', is 'huggingface')" in refusal(other)


def test_a_refused_run_leaves_the_settings_as_they_were(tmp_path):
    first = place(tmp_path)
    claimed(first)
    before = (first.run_dir / "config.json").read_bytes()
    refusal(place(tmp_path, "loss.beta=0.2"))
    assert (first.run_dir / "config.json").read_bytes() == before


FREE_VALUES = {
    "run.dir": None,  # the folder is another then
    "run.workspace": "elsewhere",
    "run.audit": "true",
    "reference.by": "trainers",
    "reference.actors": 2,
    "reference.cache": "s3://bucket/cache",
    "reference.resources": "{scorer=1.0}",
    "reference.labels": '{kind="L4"}',
    "cluster.resources": "{trainer=1.0}",
    "cluster.labels": '{kind="A100"}',
    "reference.cpus_per_actor": 2,
    "reference.gpus_per_actor": 1,
    "reference.batch_sequences": 2,
    "reference.batch_tokens": 2,
    "reference.guard_tolerance": 0.5,
    "train.checkpoint_minutes": 2.0,
    "train.checkpoint_steps": 2,
    "train.keep_checkpoints": 3,
    "sft.micro_batch_tokens": 2,
    "train.micro_batch_tokens": 2,
    "train.max_failures": 2,
    "train.share_prompts": "false",
    "train.deterministic": "true",
    "train.activation_checkpointing": None,  # not with the x-transformers policy that is tried here
    "cluster.address": "auto",
    "cluster.workers": 2,
    "cluster.cpus_per_worker": 2,
    "cluster.gpus_per_worker": 1,
    "cluster.start_minutes": 5,
    "evaluate.every_steps": 2,
    "evaluate.generate_prompts": 2,
    "evaluate.max_new_tokens": 2,
    "export.merge": None,  # not without an adapter
    "export.dtype": "float32",
    "report.tensorboard": "false",
    "report.trackers": '["tensorboard"]',
    "report.show_answers": 2,
    "report.ray_logs": "true",
}


def test_what_may_change_are_keys_of_the_configuration(tmp_path):
    tree = place(tmp_path).config.model_dump()
    keys = {f"{section}.{field}" for section, fields in FREE.items() for field in fields}
    assert keys == FREE_VALUES.keys()
    assert all(field in tree[section] for section, fields in FREE.items() for field in fields)


@pytest.mark.parametrize("key", sorted(key for key, value in FREE_VALUES.items() if value is not None))
def test_what_does_not_change_the_training_may_change(tmp_path, key, monkeypatch):
    monkeypatch.chdir(tmp_path)
    claimed(place(tmp_path))
    follow = "train.dtype=float32", "deepspeed.stage=2"  # from the GPUs, where they are left out
    changed = place(tmp_path, f"{key}={FREE_VALUES[key]}", *follow)
    assert changed.config != place(tmp_path).config
    claimed(changed)
    assert json.loads((changed.run_dir / "config.json").read_text(encoding="utf-8")) == changed.config.model_dump()


# Folders that cannot be written, files that cannot be used


@pytest.mark.parametrize("key", ["run.dir", "run.workspace"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path, key):
    (tmp_path / "file").write_text("in the way")
    text = refusal(place(tmp_path, f"{key}={tmp_path / 'file' / 'below'}"))
    assert text.startswith(f"{key}: cannot write to {tmp_path / 'file' / 'below'}")
    assert text.endswith(": Not a directory. Name another folder.")


def test_a_deepspeed_file_that_cannot_be_used_is_refused_before_anything_is_made(tmp_path):
    (tmp_path / "ds.json").write_text('{"fp16": {"enabled": true}}')
    one = place(tmp_path, deepspeed={"config": "ds.json"})
    assert "fp16.enabled = True contradicts train.dtype" in refusal(one)
    assert not one.run_dir.exists()
