"""What rendering may take, and that nothing of the bounds stays behind."""

import resource
import signal
import threading

import pytest

from dpo.text import bounds
from dpo.text.bounds import TooSlow, bounded_memory, bounded_time, render_within, try_template
from dpo.text.pairs import read_pairs
from dpo.text.render import Rendered
from dpo.text.tokenizers import CHATML, TokenizerError, load_tokenizer

LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
STATEMENTS = (lambda: signal.getsignal(signal.SIGALRM), lambda: resource.getrlimit(resource.RLIMIT_AS))


def chat(content="hi"):
    row = {"prompt": [{"role": "user", "content": content}]}
    for side in ("chosen", "rejected"):
        row[side] = [{"role": "assistant", "content": side}]
    return read_pairs(row, "best_worst", 0.0)[0]


def test_a_slow_row_is_refused_and_the_next_one_is_not(monkeypatch):
    monkeypatch.setattr(bounds, "SECONDS", 0.3)
    tokenizer = load_tokenizer("bytes", None, "{% if messages[0].content == 'slow' %}" + LOOP + "{% endif %}" + CHATML)
    before = [statement() for statement in STATEMENTS]
    with bounded_memory():
        slow, good = render_within(tokenizer, chat("slow"), {}), render_within(tokenizer, chat(), {})
    assert slow.reason == "the chat template took more than 0.3 s for the row"
    assert isinstance(good, Rendered) and [statement() for statement in STATEMENTS] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_row_that_becomes_too_long_is_refused(monkeypatch):
    monkeypatch.setattr(bounds, "CHARACTERS", 100)
    tokenizer = load_tokenizer("bytes", None, "{{ messages[0].content }}{{ messages[1].content if messages[1:] }}")
    fits, long = render_within(tokenizer, chat("x" * 86), {}), render_within(tokenizer, chat("x" * 87), {})
    assert isinstance(fits, Rendered)  # and "chosen" and "rejected"
    assert long.reason == "the row has 101 characters once rendered; the limit is 100"


def test_another_timer_goes_on():
    with pytest.raises(TooSlow), bounded_time():
        signal.raise_signal(signal.SIGALRM)
    handler = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 1000)
    with bounded_time():
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= bounds.SECONDS
    assert 900 < signal.setitimer(signal.ITIMER_REAL, 0)[0] <= 1000
    assert signal.signal(signal.SIGALRM, handler) is signal.SIG_IGN


def test_a_thread_renders_without_a_timer():
    found = []
    thread = threading.Thread(
        target=lambda: found.append(render_within(load_tokenizer("bytes", None, CHATML), chat(), {}))
    )
    thread.start()
    thread.join()
    assert isinstance(found[0], Rendered)


def test_a_template_is_tried_before_any_row(monkeypatch):
    monkeypatch.setattr(bounds, "SECONDS", 2.0)
    for template, said in {
        LOOP: "for two short messages it takes more than 2 s",
        "{{ 'x' * 10**11 }}": "takes more than 536,870,912 bytes",
        "{{ 'x' * 10**7 }}": "takes more than 4,194,304 characters",
        "{% for m in messages %}": r"it is not valid Jinja \(line 1\)",
    }.items():
        with pytest.raises(TokenizerError, match=said):
            try_template(load_tokenizer("bytes", None, template))
    for template in (CHATML, "{{ raise_exception('roles must alternate') }}", "{{ messages[7].content.x }}"):
        try_template(load_tokenizer("bytes", None, template))
