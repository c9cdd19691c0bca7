"""A conversation's token ids are those that prompts of training with the same turns have."""

import pytest

from dpo.text.pairs import PreferencePair
from dpo.text.tokenize import Rules, tokenize_pair
from pipeline.errors import InputError
from pipeline.finished.talk import Conversation
from tests.dpo.text.kinds import KINDS, kind
from tests.dpo.text.test_templates import says, template_of, user

TOLD = [("Which river?", "<think>\nVienna.\n</think>\n\nThe Danube."), ("And there?", ""), (" Here? ", "No river.")]


def trained_on(tokenizer, prompt):
    sides = ("Yes.", "No.") if isinstance(prompt, str) else ([says("Yes.")], [says("No.")])
    pair = tokenize_pair(tokenizer, PreferencePair(prompt, *sides), Rules(100_000))
    return pair.prompt_ids


@pytest.mark.parametrize("template", ["chatml", "qwen3", "qwen2_5", "deepseek_r1_distill"])
@pytest.mark.parametrize("name", list(KINDS)[::4])
def test_every_turn_is_rendered_as_a_prompt_of_training(name, template):
    tokenizer = kind(name)
    tokenizer.chat_template = template_of(template)
    talk, said = Conversation(tokenizer, {}, turns=True), []
    for line, answer in TOLD:
        said += [user(line)]
        ids = talk.ids(line)
        assert ids == talk.ids(line) == trained_on(tokenizer, said)
        talk.add(line, answer)
        said += [says(answer)]
    talk.forget()
    assert talk.ids("Which river?") == trained_on(tokenizer, [user("Which river?")])


@pytest.mark.parametrize("name", KINDS)
def test_plain_text_is_a_prompt_by_itself(name):
    tokenizer = kind(name)
    talk = Conversation(tokenizer, {}, turns=False)
    for line, answer in TOLD:
        assert talk.ids(line) == trained_on(tokenizer, line)
        talk.add(line, answer)


def test_options_of_the_run_reach_the_template():
    tokenizer = kind(next(iter(KINDS)))
    tokenizer.chat_template = "{{ mood }}: {% for m in messages %}{{ m['content'] }}{% endfor %}"
    ids = Conversation(tokenizer, {"mood": "calm"}, turns=True).ids("Yes?")
    assert tokenizer.decode(ids).replace(" ", "").endswith("calm:Yes?")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('roles must alternate') }}", "fails: roles must alternate"),
        ("{{ messages[7]['content'] + 1 }}", "fails: "),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "takes too long"),
        (
            "{% set ns = namespace(x='x') %}{% for i in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
            "takes too",
        ),
    ],
    ids=["refuses", "fails", "long", "large"],
)
def test_a_template_that_does_not_do_is_one_sentence(template, said, monkeypatch):
    monkeypatch.setattr("dpo.text.bounds.SECONDS", 1.0)
    tokenizer = kind(next(iter(KINDS)))
    tokenizer.chat_template = template
    with pytest.raises(InputError) as error:
        Conversation(tokenizer, {}, turns=True).ids("Yes?")
    assert str(error.value).startswith(f"the chat template {said}")
    assert str(error.value).endswith("; /new begins a conversation without what was said before")
