"""Twenty kinds of tokenizers under eight chat templates: what is decoded is what the template wrote.

The templates of models are those that TRL ships; three are rewritten for training (`dpo/text/variants.py`).
"""

import importlib.util
from pathlib import Path

import pytest

from dpo.text.encode import encode_all
from dpo.text.pairs import PreferencePair
from dpo.text.rejection import Rejection
from dpo.text.render import Rendered, render
from dpo.text.template import Template
from dpo.text.tokenize import Rules, tokenize_pair
from dpo.text.tokenizers import CHATML, byte_tokenizer
from dpo.text.variants import KNOWN, training_variant
from tests.dpo.text.kinds import CHANGES_TEXT, KINDS, kind
from tests.dpo.text.test_kinds import INST, decoded, ends_once

FOUND = importlib.util.find_spec("trl")
FOLDER = Path(FOUND.origin).parent / "chat_templates" if FOUND and FOUND.origin else Path("none")
OF_MODELS = ("qwen2_5", "qwen3", "llama3", "phi3", "gemma", "deepseek_r1_distill")
REWRITTEN = ("qwen3", "qwen3_5_think", "qwen3_5_nothink", "qwen3_6", "phi3", "phi3_5", "deepseek_r1_distill")
BLANKS = {ord(" "): None, ord("▁"): None}  # SentencePiece puts one before a text, and writes one for the other


def user(text):
    return {"role": "user", "content": text}


def says(text, **more):
    return {"role": "assistant", "content": text, **more}


def template_of(name):
    if name in ("chatml", "inst"):
        return CHATML if name == "chatml" else INST
    path = FOLDER / f"{name}.jinja"
    if not path.exists():
        pytest.skip(f"no template in {path}")
    return path.read_text(encoding="utf-8")


PAIR = PreferencePair([user("Which river?")], [says("The Danube.")], [says("The Rhine, I think.")])


@pytest.mark.parametrize("template", ["chatml", "inst", *OF_MODELS])
@pytest.mark.parametrize("name", KINDS)
def test_what_the_template_writes_arrives(name, template):
    tokenizer = kind(name)
    tokenizer.chat_template = template_of(template)
    pair = tokenize_pair(tokenizer, PAIR, Rules(100_000))
    if template == "llama3" and tokenizer.bos_token is None:  # which it joins to a text
        assert isinstance(pair, Rejection) and "'bos_token' is undefined" in pair.reason
        return
    assert not isinstance(pair, Rejection), pair
    written = Template(tokenizer, {})
    for side in ("chosen", "rejected"):
        whole = written(PAIR.prompt + getattr(PAIR, side))
        (joint,) = encode_all(tokenizer, [whole], False)
        end = tokenizer.eos_token_id
        found = pair.prompt_ids + getattr(pair, f"{side}_ids")
        joint = joint if end in joint[-3:] else [*joint, end]
        assert decoded(tokenizer, found) == decoded(tokenizer, joint)
        answer = found if tokenizer.eos_token != "<|end|>" else getattr(pair, f"{side}_ids")  # phi3 ends turns so
        begins = tokenizer.bos_token is not None and whole.startswith(tokenizer.bos_token)
        ends_once(tokenizer, answer, begins and answer is found)
        if not name.startswith((*CHANGES_TEXT, "SentencePiece, special tokens that eat blanks")):
            text, given = (each.removesuffix(tokenizer.eos_token) for each in (decoded(tokenizer, found), whole))
            assert text.translate(BLANKS) == given.translate(BLANKS)


# Variants for training


def rendered(template, pair, **options):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return render(tokenizer, pair, options)


def scored(found, side="chosen"):
    return [span.text for span in getattr(found, side) if span.scored]


TURNS = [says("The Danube."), user("And Basel?"), says("The Rhine.")]
SEVERAL = PAIR._replace(chosen=TURNS)


@pytest.mark.parametrize("name", REWRITTEN)
def test_completions_of_several_turns_are_rendered(name):
    template = template_of(name)
    assert training_variant(template) is not None
    changed = template + "{# of its own #}"
    assert training_variant(changed) is None
    before, found = rendered(changed, SEVERAL), rendered(template, SEVERAL)
    assert isinstance(before, Rejection) and isinstance(found, Rendered)
    first, second = scored(found)
    assert "The Danube." in first and "The Rhine." in second and "Basel" not in first + second


@pytest.mark.parametrize("name", [name for name in REWRITTEN if name != "deepseek_r1_distill"])
@pytest.mark.parametrize(
    "pair",
    [
        PAIR,
        PAIR._replace(prompt=[says("<think>\nHm.\n</think>\n\nYes."), *PAIR.prompt][1:]),
        PAIR._replace(prompt=[user("Hi"), says("<think>\nHm.\n</think>\n\nYes?"), *PAIR.prompt]),
        PAIR._replace(chosen=[says("<think>\nIt is Vienna.\n</think>\n\nThe Danube.")]),
    ],
)
def test_a_single_turn_is_written_as_the_template_writes_it(name, pair):
    template = template_of(name)
    if name == "qwen3_5_nothink" and "<think>" in pair.chosen[0]["content"]:
        pytest.skip("it takes no answers with thoughts")
    ours, given = rendered(template, pair), rendered(template + "{# of its own #}", pair)
    assert isinstance(ours, Rendered) and isinstance(given, Rendered)
    assert ours.prompt == given.prompt
    for side in ("chosen", "rejected"):
        assert "".join(scored(ours, side)) == "".join(scored(given, side)).removesuffix("<eos>")


END = "<｜end▁of▁sentence｜>"  # noqa: RUF001


@pytest.mark.parametrize(
    ("answer", "written"),
    [
        (says("The Danube."), "\n</think>\n\nThe Danube."),
        (says("<think>\nHm.\n</think>\n\nThe Danube."), "Hm.\n</think>\n\nThe Danube."),
        (says("Hm.</think>The Danube."), "Hm.\n</think>\n\nThe Danube."),
        (says("The Danube.", reasoning_content="Hm."), "Hm.\n</think>\n\nThe Danube."),
    ],
)
def test_answers_of_deepseek_r1(answer, written):
    found = rendered(template_of("deepseek_r1_distill"), PAIR._replace(chosen=[answer]))
    assert found.prompt.endswith("<｜Assistant｜><think>\n")  # noqa: RUF001
    assert scored(found) == [written + END]
    asked = [user("Hi"), says("<think>Hm.</think>Yes?"), *PAIR.prompt]
    assert "Hm." not in rendered(template_of("deepseek_r1_distill"), PAIR._replace(prompt=asked)).prompt


def test_every_edit_is_made():
    for name in REWRITTEN:
        template = template_of(name)
        variant = training_variant(template)
        assert variant.template != template
        edits = next(edits for model, edits, _ in KNOWN.values() if model == variant.model)
        assert all(instead in variant.template for part, instead in edits if part in template)
