import re
from typing import get_args

from pipeline import Config
from pipeline.config import Adapter, Train
from pipeline.config.losses import AnyLoss
from tests.pipeline.test_cli import left_with


def keys(capsys, *sections):
    """What `ray-align --keys` prints."""
    return left_with(0, capsys, "--keys", *sections).removesuffix("\n")


def test_keys_lists_every_key_with_its_default_and_choices(capsys):
    page = keys(capsys)
    sections = re.findall(r"^\[(\w+)\]", page, re.M)
    assert list(dict.fromkeys(sections)) == list(Config.model_fields)
    lines = re.findall(r"^(\w+) = (.+?)(?: +# (.+))?$", page, re.M)
    assert [key for key, _, about in lines if not about] == []
    assert ("beta", "0.1", "Strength of the pull to the reference: a larger beta keeps the policy closer.") in lines
    assert ("schedule", '"linear"') in [line[:2] for line in lines]
    assert next(about for key, _, about in lines if key == "truncation").startswith('one of "keep_start", "keep_end"')
    assert len(lines) == sum(page.count(f"\n{key} = ") for key in {key for key, *_ in lines})


def test_keys_says_what_every_section_is_for(capsys):
    page = keys(capsys)
    headings = dict(re.findall(r"^\[(\w+)\]  # (\S.+)$", page, re.M))
    assert list(headings) == list(Config.model_fields)
    assert len(re.findall(r"^\[\w+\]", page, re.M)) == len(headings)  # each section once
    assert re.findall(r"^\[(\w+\.\w+)\]  # (\S.+)$", page, re.M) == [("policy.adapter", Adapter.__doc__)]
    for name, field in Config.model_fields.items():
        assert headings[name] == field.description or headings[name] == field.annotation.__doc__, name
    assert headings["sft"].startswith("Supervised training before DPO;")


def test_keys_shows_what_all_losses_share_and_a_line_a_kind(capsys):
    shared, kinds, meanings = keys(capsys, "loss").split("\n\n")
    assert re.findall(r"^\w+ = \S+", shared, re.M) == ['kind = "sigmoid"', "weight = 1.0"]
    own = dict(re.findall(r"^  (\w+) +(.+)$", kinds, re.M))
    losses = {
        kind: loss for loss in get_args(get_args(AnyLoss)[0]) for kind in get_args(loss.model_fields["kind"].annotation)
    }
    assert set(own) == set(losses)
    for kind, loss in losses.items():
        named = re.findall(r"(\w+) = ", own[kind])
        assert sorted(named) == sorted(set(loss.model_fields) - {"kind", "weight"}), kind
        assert all(re.search(rf"^{name} = .+# ", meanings, re.M) for name in named)
    assert own["simpo"] == "beta = 2.0, gamma = 0.5"
    assert own["sft"] == "no other"
    assert own["mixture"] == "losses = ... (must be given), and no weight"
    assert re.search(r"^beta = 2\.0 +# simpo: Scales", meanings, re.M)
    assert len(re.findall(r"^divergence = ", meanings, re.M)) == 1


def test_keys_shows_both_kinds_of_policy(capsys):
    page = keys(capsys, "policy")
    own = r"path = \(unset\), config = \(unset\), adapter = \(unset\), quantize = .none."
    assert re.search(rf"^  huggingface +{own}$", page, re.M)
    assert re.search(r"^  x-transformers +path = \(unset\), dim = 512, depth = 6, heads = 8, ", page, re.M)
    assert re.search(r"^path = .+ # huggingface: A folder with config\.json", page, re.M)
    assert re.search(r"^path = .+ # x-transformers: A folder that ray-align exported", page, re.M)


def test_keys_of_one_section(capsys):
    page = keys(capsys, "train")
    assert re.findall(r"^\[(\w+)\]", page, re.M) == ["train"]
    assert set(re.findall(r"^(\w+) = ", page, re.M)) == set(Train.model_fields)
    assert f"{page}\n" in keys(capsys)
    assert keys(capsys, "train", "run") == f"{keys(capsys, 'run')}\n\n{page}"  # in the order of the file


def test_keys_of_no_section_is_refused_with_those_there_are(capsys):
    error = left_with(2, capsys, "--keys", "train", "trian")
    assert f"there is no section 'trian' (choose from {', '.join(Config.model_fields)})" in error
