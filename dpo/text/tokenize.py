"""PreferencePair -> token ids: prompt boundary, end of sequence, truncation. render.py asks the chat template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dpo.text.bounds import bounded_memory, render_within
from dpo.text.encode import ANCHORS, Encoder
from dpo.text.pairs import PreferencePair, TokenizedPair
from dpo.text.rejection import Rejection
from dpo.text.render import Rendered, Span
from dpo.text.template import Template

CHANGED = "text changed"  # the kind of a rejection


class Rules(NamedTuple):
    """The rules by which pairs become token ids. Lengths are in tokens.

    `truncation` says what happens to longer pairs: "keep_start" cuts a completion's end and never the prompt,
    "keep_end" cuts the prompt's beginning, "drop" rejects the pair. A completion above `max_completion_length` loses
    its end unless that is "drop".
    """

    max_length: int
    truncation: str = "keep_start"
    max_prompt_length: int | None = None
    max_completion_length: int | None = None
    template_options: dict[str, Any] = {}  # further keywords of apply_chat_template  # noqa: RUF012


def split_completion(
    encode: Callable[[str], list[int]], apart: Callable[[str], list[int]], prompt: str, spans: Sequence[Span]
) -> tuple[list[int], list[bool], bool]:
    """Find the end of the prompt and of each turn after it: one rule everywhere.

    Encode the joined text; where the ids of what came before are a prefix of that, the rest is the next span.
    Otherwise the span is encoded apart, without special tokens.

    Args:
        encode: ids of a text that begins with the prompt.
        apart: ids of a span by itself, as it stands in the middle of a text.

    Returns:
        ids of the completion, its mask, and whether a span had to be encoded apart.
    """
    before, so_far = prompt, encode(prompt)
    ids: list[int] = []
    mask: list[bool] = []
    alone = False
    for span in spans:
        joined = encode(before + span.text)
        if joined[: len(so_far)] == so_far and len(joined) > len(so_far):
            new = joined[len(so_far) :]
        else:
            new, alone = apart(span.text), True
        ids, mask = ids + new, mask + [span.scored] * len(new)
        before, so_far = before + span.text, so_far + new
    return ids, mask, alone


def end_once(ids: list[int], eos_id: int, tail: int) -> list[int]:
    """Append the end token unless it stands among the last `tail` tokens (templates may put a newline behind it)."""
    return ids if eos_id in ids[-tail:] else [*ids, eos_id]


def tokenize_pair(tokenizer: Any, pair: PreferencePair, rules: Rules) -> TokenizedPair | Rejection:
    """Encode one pair."""
    (found,) = tokenize_pairs(tokenizer, [pair], rules)
    return found


def tokenize_pairs(
    tokenizer: Any, pairs: Sequence[PreferencePair], rules: Rules, encoder: Encoder | None = None
) -> list[TokenizedPair | Rejection]:
    """Encode pairs, all their texts in one batch.

    Args:
        encoder: of this tokenizer, to be used again; what it knows is forgotten.
    """
    encoder = encoder or Encoder(tokenizer, cut=False)
    encoder.known.clear()
    template = Template(tokenizer, rules.template_options)
    with bounded_memory():
        rendered = [render_within(tokenizer, pair, rules.template_options, template) for pair in pairs]
    heads = [encoder.head(texts.prompt) if isinstance(texts, Rendered) else 0 for texts in rendered]
    for texts, head in zip(rendered, heads, strict=True):
        if isinstance(texts, Rendered):
            encoder.want(texts.prompt, head, texts.special)
            for side in (texts.chosen, texts.rejected):
                text = texts.prompt
                for span in side:
                    text += span.text
                    encoder.want(text, head, texts.special)
    encoder.encode_wanted()
    end, end_id = str(tokenizer.eos_token), tokenizer.eos_token_id
    found = [
        texts if isinstance(texts, Rejection) else _encoded(encoder, texts, head, end, end_id)
        for texts, head in zip(rendered, heads, strict=True)
    ]
    return [pair if isinstance(pair, Rejection) else _truncate(pair, rules) for pair in found]


def _encoded(encoder: Encoder, texts: Rendered, head: int, end: str, end_id: int) -> TokenizedPair | Rejection:
    """Encode a rendered pair. The first `head` characters of its prompt are encoded separately."""
    sides = []
    for name, spans in (("chosen", texts.chosen), ("rejected", texts.rejected)):
        found = _side(encoder, texts, head, spans, name)
        if isinstance(found, Rejection):
            return found
        ids, mask, apart = found
        whole = spans[-1].text if spans else texts.prompt
        ended = end_once(ids, end_id, 1 if texts.special and not whole.rstrip().endswith(end) else 3)
        sides.append((ended, mask + [True] * (len(ended) - len(ids)), apart))
    (chosen, chosen_mask, apart), (rejected, rejected_mask, other) = sides
    prompt = encoder(texts.prompt, head, texts.special)
    return TokenizedPair(prompt, chosen, rejected, chosen_mask, rejected_mask, apart or other, 0)


def _side(
    encoder: Encoder, texts: Rendered, head: int, spans: list[Span], name: str
) -> tuple[list[int], list[bool], bool] | Rejection:
    """Encode a completion so that prompt and completion decode to the text that both have together."""

    def encode(text: str) -> list[int]:
        return encoder(text, head, texts.special)

    ids, mask, apart = split_completion(encode, encoder.inside, texts.prompt, spans)
    if not apart:
        return ids, mask, False
    prompt = encode(texts.prompt)
    joint = encode(texts.prompt + "".join(span.text for span in spans))
    text, wanted = encoder.decoded([prompt + ids, joint])
    if text == wanted:
        return ids, mask, True
    for anchor in ANCHORS:  # tokenizers that mark what follows in a word, as WordPiece

        def behind(text: str, anchor: str = anchor) -> list[int]:
            return encoder.behind(anchor, text) or []

        ids, mask, _ = split_completion(encode, behind, texts.prompt, spans)
        if encoder.decoded([prompt + ids]) == [wanted]:
            return ids, mask, True
    at = next((at for at, (ours, both) in enumerate(zip(text, wanted, strict=False)) if ours != both), len(wanted))
    at = max(0, at - 10)
    shown = f"{text[at : at + 40]!r} for {wanted[at : at + 40]!r}"
    return Rejection(
        f"the tokenizer cannot encode {name!r} apart from the prompt without changing it: {shown}", CHANGED
    )


def _truncate(pair: TokenizedPair, rules: Rules) -> TokenizedPair | Rejection:
    """Within the limits, or why not."""
    prompt, most, limit = pair.prompt_ids, rules.max_length, rules.max_prompt_length
    if not prompt:
        return Rejection("the prompt has no tokens", "empty side")
    chosen, rejected = pair.chosen_ids, pair.rejected_ids
    whole = len(prompt) + max(len(chosen), len(rejected))
    if rules.truncation == "drop":
        fault = _too_long(pair, rules)
        if fault is not None:
            return Rejection(fault, "too long")
    answer = rules.max_completion_length
    if answer is not None:
        chosen, rejected = chosen[:answer], rejected[:answer]
    longest = max(len(chosen), len(rejected))
    if rules.truncation == "keep_end":
        keep = min(most - longest, limit or most)
        if keep < 1:
            said = f"a completion leaves no room for the prompt within data.max_length = {most}"
            return Rejection(f"{said}; data.max_completion_length would cut it", "too long")
        prompt = prompt[-keep:]
    elif limit is not None and len(prompt) > limit:
        return Rejection(f"the prompt has {len(prompt)} tokens, and data.max_prompt_length is {limit}", "too long")
    elif len(prompt) >= most:
        return Rejection(f"the prompt has {len(prompt)} tokens, and data.max_length is {most}", "too long")
    room = most - len(prompt)
    chosen, rejected = chosen[:room], rejected[:room]
    cut = whole - len(prompt) - max(len(chosen), len(rejected))
    if chosen == rejected:
        if cut:
            return Rejection("chosen and rejected are the same after truncation", "same once cut")
        return Rejection("chosen and rejected are the same tokens", "same sides")
    masks = pair.chosen_mask[: len(chosen)], pair.rejected_mask[: len(rejected)]
    if not any(masks[0]) or not any(masks[1]):
        return Rejection("truncation leaves no assistant token to score", "too long")
    # The shorter side may be cut where the longer one is not counted twice: `cut` is of the longer side.
    return TokenizedPair(prompt, chosen, rejected, *masks, pair.apart, cut)


def _too_long(pair: TokenizedPair, rules: Rules) -> str | None:
    answer = max(len(pair.chosen_ids), len(pair.rejected_ids))
    found = (
        (len(pair.prompt_ids) + answer, rules.max_length, "", "data.max_length"),
        (len(pair.prompt_ids), rules.max_prompt_length, "the prompt has ", "data.max_prompt_length"),
        (answer, rules.max_completion_length, "a completion has ", "data.max_completion_length"),
    )
    for length, most, what, key in found:
        if most is not None and length > most:
            return f"{what}{length} tokens, and {key} is {most}"
    return None
