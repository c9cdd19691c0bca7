"""What chat templates write, and which of it is scored; limits of prompt and completion; ids as the tokenizer's own."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpo.text.encode import Encoder, encode_all
from dpo.text.pairs import PreferencePair, read_pair
from dpo.text.rejection import Rejection
from dpo.text.render import Rendered, Span, render
from dpo.text.tokenize import Rules, tokenize_pair, tokenize_pairs
from dpo.text.tokenizers import CHATML, load_tokenizer
from tests.places import DATA

TOKENIZERS = DATA / "tokenizers"
CHAT = load_tokenizer("bytes", eos_token="<|im_end|>", chat_template="chatml")
WIDE = Rules(100_000)


def user(text):
    return {"role": "user", "content": text}


def says(text):
    return {"role": "assistant", "content": text}


def tool(text):
    return {"role": "tool", "content": text}


def with_template(template):
    return load_tokenizer("bytes", chat_template=template)


def texts(tokenizer, pair, side="chosen", rules=WIDE):
    """The prompt, and of a side the stretches of scored and unscored tokens, decoded."""
    found = tokenize_pair(tokenizer, pair, rules)
    assert not isinstance(found, Rejection), found
    stretches = []
    for token, scored in zip(getattr(found, f"{side}_ids"), getattr(found, f"{side}_mask"), strict=True):
        if not stretches or stretches[-1][1] != scored:
            stretches.append(([], scored))
        stretches[-1][0].append(token)
    return [tokenizer.decode(found.prompt_ids), *((tokenizer.decode(ids), scored) for ids, scored in stretches)]


# Completions of several turns


def test_of_several_turns_only_the_assistants_are_scored():
    chosen = [says("Hello."), user("And?"), says("Bye."), user("Again?"), says("No.")]
    pair = PreferencePair(
        [{"role": "system", "content": "Be kind."}, user("Hi")], chosen, [says("Go."), user("?"), says("!")]
    )
    assert texts(CHAT, pair) == [
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        ("Hello.<|im_end|>\n", True),
        ("<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n", False),
        ("Bye.<|im_end|>\n", True),
        ("<|im_start|>user\nAgain?<|im_end|>\n<|im_start|>assistant\n", False),
        ("No.<|im_end|>\n", True),
    ]
    assert texts(CHAT, pair, "rejected")[1:] == [
        ("Go.<|im_end|>\n", True),
        ("<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n", False),
        ("!<|im_end|>\n", True),
    ]


def test_sides_of_different_lengths_stand_for_themselves():
    pair = PreferencePair([user("Hi")], [says("a")], [says("b"), user("c"), says("d")])
    assert texts(CHAT, pair)[1:] == [("a<|im_end|>\n", True)]
    assert [scored for _, scored in texts(CHAT, pair, "rejected")[1:]] == [True, False, True]


def test_what_tools_answer_is_not_scored():
    chosen = [says("Let me see."), tool("21 degrees"), tool("sunny"), says("Warm.")]
    pair = PreferencePair([user("Weather?")], chosen, [says("Cold.")])
    assert texts(CHAT, pair)[1:] == [
        ("Let me see.<|im_end|>\n", True),
        (
            "<|im_start|>tool\n21 degrees<|im_end|>\n<|im_start|>tool\nsunny<|im_end|>\n<|im_start|>assistant\n",
            False,
        ),
        ("Warm.<|im_end|>\n", True),
    ]


def test_two_messages_of_the_assistant_in_a_row_are_both_scored():
    """Nothing asks for the second one, so what opens it is the assistant's too."""
    pair = PreferencePair([user("Hi")], [says("One."), says("Two.")], [says("x")])
    assert texts(CHAT, pair)[1:] == [("One.<|im_end|>\n<|im_start|>assistant\nTwo.<|im_end|>\n", True)]


def test_the_end_token_is_added_once_and_scored():
    """The tokenizer's end is not the template's: it stands behind the last turn alone."""
    tokenizer = with_template("chatml")
    pair = PreferencePair([user("Hi")], [says("a"), user("b"), says("c")], [says("d")])
    assert texts(tokenizer, pair)[1:] == [
        ("a<|im_end|>\n", True),
        ("<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n", False),
        ("c<|im_end|>\n<eos>", True),
    ]


def test_turns_of_a_row_go_the_same_way():
    """A list in which both sides begin with the same turns: those are the prompt."""
    shared = [user("Hi"), says("Yes?"), user("Well")]
    pair = read_pair({"chosen": [*shared, says("a"), user("b"), says("c")], "rejected": [*shared, says("d")]})
    assert texts(CHAT, pair)[0].count("<|im_start|>") == 4
    assert texts(CHAT, pair)[1:] == [
        ("a<|im_end|>\n", True),
        ("<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n", False),
        ("c<|im_end|>\n", True),
    ]


def test_a_side_that_is_cut_within_a_later_turn():
    """The prompt has 40 bytes and a control token, the first turn 8 of them and one."""
    pair = PreferencePair([user("Hi")], [says("12345678"), user("b"), says("c")], [says("d")])
    whole = tokenize_pair(CHAT, pair, WIDE)
    first = whole.chosen_mask.index(False)
    for more in (0, 1, 5):
        found = tokenize_pair(CHAT, pair, Rules(len(whole.prompt_ids) + first + more))
        assert found.chosen_mask == [True] * first + [False] * more
        assert found.chosen_ids == whole.chosen_ids[: first + more]


# Tools and options


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
WITH_TOOLS = (
    "{% if tools %}Tools: {% for tool in tools %}{{ tool['function']['name'] }} {% endfor %}{{ '\n' }}{% endif %}"
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}"
    "{% for call in m['tool_calls'] or [] %}[{{ call['function']['name'] }}]{% endfor %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_a_template_shows_the_tools_of_a_row():
    tokenizer = with_template(WITH_TOOLS)
    calling = {**says(""), "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {}}}]}
    pair = PreferencePair([user("Warm?")], [calling, tool("21"), says("Yes.")], [says("No.")], TOOLS)
    assert texts(tokenizer, pair) == [
        "Tools: weather \nuser: Warm?\nassistant: ",
        ("[weather]\n", True),
        ("tool: 21\nassistant: ", False),
        ("Yes.\n<eos>", True),
    ]
    assert texts(tokenizer, pair._replace(tools=None))[0] == "user: Warm?\nassistant: "


def test_options_reach_the_template():
    tokenizer = with_template(
        "{{ date | default('no date') }} {% for m in messages %}{{ m['content'] }};{% endfor %}"
        "{% if think is defined and not think %}(quietly){% endif %}"
    )
    pair = PreferencePair([user("Hi")], [says("a")], [says("b")])
    assert texts(tokenizer, pair)[0] == "no date Hi;"
    rules = Rules(100, template_options={"date": "26 Jul 2024"})
    assert texts(tokenizer, pair, rules=rules) == ["26 Jul 2024 Hi;", ("a;<eos>", True)]
    refused = tokenize_pair(tokenizer, pair, Rules(100, template_options={"think": False}))
    assert refused.reason == "the chat template renders the prompt differently once 'chosen' follows"


def test_strings_go_by_every_template():
    pair = PreferencePair("Hi", " a", " b")
    assert render(with_template("{{ raise_exception('no') }}"), pair, {}) == Rendered(
        "Hi", [Span(" a", True)], [Span(" b", True)], special=True
    )


# Templates that do not do


def refused(template, pair, **options):
    found = tokenize_pair(with_template(template), pair, Rules(1000, template_options=options))
    assert isinstance(found, Rejection) and found.kind == "template", found
    return found.reason


SEVERAL = PreferencePair([user("Hi")], [says("a"), user("b"), says("c")], [says("d")])
ONE = PreferencePair([user("Hi")], [says("a")], [says("d")])


@pytest.mark.parametrize(
    "template",
    [
        # only the last message in full, as templates do that leave out earlier thoughts
        "{% for m in messages %}{{ m['content'] if loop.last or m['role'] == 'user' else '...' }};{% endfor %}",
        "{% for m in messages %}{{ m['content'] }}{{ '' if loop.index < 3 else 'x' if loop.index == 3 }};{% endfor %}"
        "{{ 'end' if messages | length == 2 }}",
    ],
)
def test_a_template_that_writes_earlier_turns_otherwise_is_refused(template):
    """A single turn of it is well defined, several are not."""
    assert refused(template, SEVERAL) == "the chat template renders earlier turns differently once 'chosen' follows"
    turned = SEVERAL._replace(chosen=SEVERAL.rejected, rejected=SEVERAL.chosen)
    assert refused(template, turned) == "the chat template renders earlier turns differently once 'rejected' follows"
    assert not isinstance(tokenize_pair(with_template(template), ONE, WIDE), Rejection)


def test_a_template_that_takes_no_system_turn_says_so():
    template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
    )
    pair = ONE._replace(prompt=[{"role": "system", "content": "Be kind."}, user("Hi")])
    assert refused(template, pair) == "the chat template refuses the row: System role not supported"
    assert not isinstance(tokenize_pair(with_template(template), ONE, WIDE), Rejection)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ messages[0]['content'] + 1 }}", "fails on the row: TypeError: can only concatenate str"),
        ("{{ messages[0]['content'].index('none') }}", "fails on the row: ValueError: "),
        ("{{ messages[0]['content'].format('{none}') }}{{ '{none}'.format(1) }}", "fails on the row: KeyError: "),
        ("{{ messages[7]['content'] }}", "refuses the row: "),
        ("{{ messages.nothing.more }}", "refuses the row: "),
        ("{% for m in messages %}{{ nothing(m) }}{% endfor %}", "refuses the row: 'nothing' is undefined"),
        ("{% if %}", "refuses the row: "),
    ],
)
def test_a_template_that_fails_rejects_the_row(template, said):
    assert refused(template, ONE._replace(prompt=[user("Hi")])).startswith(f"the chat template {said}")


def test_a_template_that_shows_no_assistant_rejects_the_row():
    """Both sides would be empty but for the end token."""
    found = tokenize_pair(
        with_template("{% for m in messages %}{{ m['content'] if m['role'] == 'user' }}{% endfor %}"), ONE, WIDE
    )
    said = "the chat template leaves out the text of message 1 of 'chosen', whose role is 'assistant': 'a'"
    assert found == Rejection(said, "text lost")


# Limits: one byte is one token; each side has its end token besides


def limited(prompt, chosen, rejected, *limits):
    """The three texts that are left (E: the end token) and what was cut; or the reason why nothing is."""
    tokenizer = load_tokenizer("bytes")
    found = tokenize_pair(tokenizer, PreferencePair(prompt, chosen, rejected), Rules(*limits))
    if isinstance(found, Rejection):
        assert found.kind == ("same once cut" if "the same" in found.reason else "too long")
        return found.reason
    assert found.chosen_mask == [True] * len(found.chosen_ids)
    assert found.rejected_mask == [True] * len(found.rejected_ids)
    return (*(tokenizer.decode(ids).replace("<eos>", "E") for ids in found[:3]), found.cut)


FITS = ("0123456789", "abcdefE", "xyE", 0)
SAID = "the prompt has 10 tokens, and data.max_prompt_length is 9"


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        # max_length, truncation, max_prompt_length, max_completion_length
        ((17, "keep_start"), FITS),
        ((17, "keep_start", 10, 7), FITS),
        ((16, "keep_start"), ("0123456789", "abcdef", "xyE", 1)),
        ((12, "keep_start"), ("0123456789", "ab", "xy", 5)),
        ((11, "keep_start"), ("0123456789", "a", "x", 6)),
        ((10, "keep_start"), "the prompt has 10 tokens, and data.max_length is 10"),
        ((50, "keep_start", 9, None), SAID),
        ((50, "keep_start", 9, 3), SAID),
        ((50, "keep_start", None, 4), ("0123456789", "abcd", "xyE", 3)),
        ((50, "keep_start", 10, 2), ("0123456789", "ab", "xy", 5)),
        ((13, "keep_start", 10, 5), ("0123456789", "abc", "xyE", 4)),
        ((17, "keep_end"), FITS),
        ((16, "keep_end"), ("123456789", "abcdefE", "xyE", 1)),
        ((8, "keep_end"), ("9", "abcdefE", "xyE", 9)),
        (
            (7, "keep_end"),
            "a completion leaves no room for the prompt within data.max_length = 7; "
            "data.max_completion_length would cut it",
        ),
        ((7, "keep_end", None, 3), ("6789", "abc", "xyE", 10)),
        ((50, "keep_end", 4, None), ("6789", "abcdefE", "xyE", 6)),
        ((50, "keep_end", 4, 3), ("6789", "abc", "xyE", 10)),
        ((9, "keep_end", 4, None), ("89", "abcdefE", "xyE", 8)),
        ((50, "keep_end", 10, None), FITS),
        ((17, "drop"), FITS),
        ((17, "drop", 10, 7), FITS),
        ((16, "drop"), "17 tokens, and data.max_length is 16"),
        ((50, "drop", 9, None), SAID),
        ((50, "drop", None, 6), "a completion has 7 tokens, and data.max_completion_length is 6"),
        ((50, "drop", 9, 6), SAID),
    ],
)
def test_limits(limits, expected):
    """Ten tokens of prompt, seven of the chosen side and three of the other one; the longer side is told in `cut`."""
    assert limited("0123456789", "abcdef", "xy", *limits) == expected
    if not isinstance(expected, str):
        prompt, chosen, rejected, cut = expected
        assert limited("0123456789", "xy", "abcdef", *limits) == (prompt, rejected, chosen, cut)


def test_limits_may_leave_no_difference():
    assert limited("p", "abc", "abd", 50, "keep_start", None, 2) == "chosen and rejected are the same after truncation"
    assert limited("p", "abc", "ab", 50, "keep_start", None, 2) == "chosen and rejected are the same after truncation"
    assert limited("p", "abc", "ab", 50, "keep_start", None, 3) == ("p", "abc", "abE", 1)


def test_limits_within_several_turns():
    """Of turns "ab", user "c", "d" a limit of the completion may leave the first turn and a part of what follows."""
    tokenizer = with_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    pair = PreferencePair([user("Hi")], [says("ab"), user("c"), says("d")], [says("x")])
    assert texts(tokenizer, pair)[1:] == [("ab", True), ("c", False), ("d<eos>", True)]
    assert texts(tokenizer, pair, rules=Rules(50, max_completion_length=3))[1:] == [("ab", True), ("c", False)]


# Ids as the tokenizer's own


def folder(name):
    if not (TOKENIZERS / name).is_dir():
        pytest.skip(f"no {name} in {TOKENIZERS}")
    return str(TOKENIZERS / name)


LOADED, ENCODERS = {}, {}
ENDS = ("<|endoftext|>", "<eos>")
WORDS = [
    *ENDS,
    "the",
    " cat",
    "\n\n",
    "  ",
    "é",
    "🦊",
    "don't",
    "12345",
    "\t",
    "<s>",
    "</s>",
    "\0",
    "中文",
    " sat",
    "\n",
    ".",
]
PIECES = st.one_of(st.text(max_size=20), st.lists(st.sampled_from(WORDS), max_size=12).map("".join))


@pytest.mark.parametrize("name", ["gpt2", "small2k", "bytes"])
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(PIECES.filter(lambda text: not text.endswith(tuple(2 * end for end in ENDS))), max_size=6))
@example(texts=["", " ", "Passage.\n\n", "<|endoftext|>", "a<|endoftext|>b", "<eos>"])
def test_a_batch_gives_the_ids_of_each_text_alone(name, texts):
    tokenizer = loaded(name)
    assert encode_all(tokenizer, texts, special=True) == [tokenizer(text)["input_ids"] for text in texts]
    alone = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert encode_all(tokenizer, texts, special=False) == alone


@pytest.mark.parametrize("name", ["gpt2", "small2k", "bytes"])
@settings(max_examples=80, deadline=None)
@given(prompt=PIECES, sides=st.tuples(PIECES, PIECES))
@example(prompt="The cat", sides=(" sat down", "s sat"))
@example(prompt="The cat sat on", sides=("", " the\n\n"))
@example(prompt="a b", sides=("c d", " c d"))
def test_the_ids_of_a_pair_are_those_of_its_texts(name, prompt, sides):
    """The prompt's by itself; with the completion those of both together, unless they had to be encoded apart."""
    tokenizer = loaded(name)
    sides = [side.replace(tokenizer.eos_token, "") + ending for side, ending in zip(sides, ("one", "two"), strict=True)]
    prompt = prompt.replace(tokenizer.eos_token, "") + "."
    (found,) = tokenize_pairs(tokenizer, [PreferencePair(prompt, *sides)], WIDE, ENCODERS[name])
    assert found.prompt_ids == tokenizer(prompt)["input_ids"]
    joined = [tokenizer(prompt + side)["input_ids"] for side in sides]
    ends = [[*found.prompt_ids, *ids] for ids in (found.chosen_ids, found.rejected_ids)]
    length = len(found.prompt_ids)
    assert found.apart == any(ids[:length] != found.prompt_ids for ids in joined)
    for side, whole, ids in zip(sides, joined, ends, strict=True):
        if whole[:length] != found.prompt_ids:
            whole = found.prompt_ids + tokenizer(side, add_special_tokens=False)["input_ids"]
        assert ids == [*whole, tokenizer.eos_token_id]


def loaded(name):
    if name not in LOADED:
        path = name if name == "bytes" else folder(name)
        LOADED[name] = load_tokenizer(path, eos_token="<|endoftext|>" if name == "small2k" else None)
        ENCODERS[name] = Encoder(LOADED[name])
    return LOADED[name]


def test_a_tokenizer_that_was_told_to_cut_or_pad_does_neither():
    tokenizer = load_tokenizer("bytes")
    tokenizer(["abc", "a"], truncation=True, max_length=2, padding=True)
    assert list(map(len, encode_all(tokenizer, ["abc", "a", ""], special=True))) == [3, 1, 0]
