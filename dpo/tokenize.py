"""PreferencePair -> token ids: prompt boundary, end of sequence, truncation. What a template renders: dpo/render.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dpo.encode import Encoder
from dpo.errors import InputError
from dpo.pairs import PreferencePair, Rejection, TokenizedPair
from dpo.render import Rendered, Span, render

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Rules(NamedTuple):
    """How pairs become token ids. Lengths are in tokens.

    `truncation` says what happens to longer pairs: "keep_start" cuts a completion's end and never the prompt,
    "keep_end" cuts the prompt's beginning, "drop" rejects the pair. A completion above `max_completion_length` loses
    its end unless that is "drop".
    """

    max_length: int
    truncation: str = "keep_start"
    max_prompt_length: int | None = None
    max_completion_length: int | None = None
    template_options: dict[str, Any] = {}  # further keywords of apply_chat_template  # noqa: RUF012


class TokenizerError(InputError):
    """A tokenizer that cannot be loaded or cannot do what the data asks of it."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that needs no files: one id a byte (0-255, printable ones first), then <eos> and <pad>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")


def load_tokenizer(path: str, eos_token: str | None = None, chat_template: str | None = None) -> Any:
    """Load "bytes", a folder or a hub name.

    Args:
        path: "bytes", a folder (also a bare `tokenizer.json`, or `vocab.json` with `merges.txt`), or a hub name.
        eos_token: replaces the tokenizer's own end token; added to the vocabulary if it is not in it.
        chat_template: "chatml", a Jinja text or the path of one; replaces the tokenizer's own.

    Raises:
        TokenizerError: nothing loadable there, or no end token.
    """
    tokenizer = byte_tokenizer() if path == "bytes" else _load(path)
    if eos_token is not None:
        tokenizer.add_special_tokens({"eos_token": eos_token})
    if tokenizer.eos_token_id is None:
        raise TokenizerError(
            f"the tokenizer {path!r} has no end-of-sequence token, so no completion could end. "
            'Name one, for example: [tokenizer] eos_token = "<|endoftext|>" (it is added if the vocabulary lacks it).'
        )
    if chat_template is not None:
        tokenizer.chat_template = _template_text(chat_template)
    return tokenizer


def _load(path: str) -> PreTrainedTokenizerBase:
    folder = Path(path)
    if folder.is_dir() and not (folder / "tokenizer_config.json").exists():
        if (folder / "tokenizer.json").exists():
            return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
            return _byte_pair(folder)
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        lines = str(error).strip().splitlines()
        raise TokenizerError(f"no tokenizer could be loaded from {path!r}: {lines[0] if lines else error!r}") from error


def _byte_pair(folder: Path) -> PreTrainedTokenizerFast:
    """GPT-2's two-file form, which names no special tokens."""
    backend = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    eos = end if end in json.loads((folder / "vocab.json").read_text(encoding="utf-8")) else None
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos)


def _template_text(template: str) -> str:
    if template == "chatml":
        return CHATML
    if "{" in template:
        return template
    try:
        return Path(template).read_text(encoding="utf-8")
    except OSError as error:
        raise TokenizerError(
            f'tokenizer.chat_template = {template!r} is neither "chatml", nor Jinja, nor a file that can be read'
        ) from error


def split_completion(
    encode: Callable[[str], list[int]], apart: Callable[[str], list[int]], prompt: str, spans: Sequence[Span]
) -> tuple[list[int], list[bool], bool]:
    """Where the prompt ends, and each turn after it: one rule everywhere.

    Encode the joined text; where the ids of what came before are a prefix of that, the rest is the next span.
    Otherwise the span is encoded apart, without special tokens.

    Args:
        encode: ids of a text that begins with the prompt.
        apart: ids of a span by itself.

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
    rendered = [render(tokenizer, pair, rules.template_options) for pair in pairs]
    for texts in rendered:
        if isinstance(texts, Rendered):
            head = encoder.head(texts.prompt)
            encoder.want(texts.prompt, head, texts.special)
            for side in (texts.chosen, texts.rejected):
                text = texts.prompt
                for span in side:
                    text += span.text
                    encoder.want(text, head, texts.special)
    encoder.encode_wanted()
    end = tokenizer.eos_token_id
    return [
        texts if isinstance(texts, Rejection) else _truncate(_encoded(encoder, texts, end), rules) for texts in rendered
    ]


def _encoded(encoder: Encoder, texts: Rendered, end: int) -> TokenizedPair:
    head, tail = encoder.head(texts.prompt), 1 if texts.special else 3

    def encode(text: str) -> list[int]:
        return encoder(text, head, texts.special)

    sides = []
    for spans in (texts.chosen, texts.rejected):
        ids, mask, apart = split_completion(encode, lambda text: encoder(text, 0, False), texts.prompt, spans)
        ended = end_once(ids, end, tail)
        sides.append((ended, mask + [True] * (len(ended) - len(ids)), apart))
    (chosen, chosen_mask, apart), (rejected, rejected_mask, other) = sides
    return TokenizedPair(encode(texts.prompt), chosen, rejected, chosen_mask, rejected_mask, apart or other, 0)


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
