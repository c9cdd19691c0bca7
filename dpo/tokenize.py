"""PreferencePair -> token ids: chat template, prompt boundary, end of sequence, truncation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dpo.errors import InputError
from dpo.pairs import PreferencePair, Rejection, TokenizedPair

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRUNCATIONS = ("keep_start", "keep_end", "reject")


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


def encode_completion(tokenizer: Any, prompt: str, completion: str, special: bool) -> tuple[list[int], list[int], bool]:
    """Where the prompt ends: one rule everywhere.

    Encode the joined text; where the prompt's own ids are a prefix of that, the rest is the completion. Otherwise
    the completion is encoded apart, without special tokens.

    Returns:
        prompt ids, completion ids, and whether they had to be encoded apart.
    """
    prompt_ids = encode(tokenizer, prompt, special)
    joined = encode(tokenizer, prompt + completion, special)
    if joined[: len(prompt_ids)] == prompt_ids and len(joined) > len(prompt_ids):
        return prompt_ids, joined[len(prompt_ids) :], False
    return prompt_ids, encode(tokenizer, completion, special=False), True


def encode(tokenizer: Any, text: str, special: bool) -> list[int]:
    """Token ids of a text; `special` adds the tokenizer's own begin token. Its end token is left to `end_once`."""
    ids = list(tokenizer(text, add_special_tokens=special)["input_ids"])
    end = tokenizer.eos_token_id
    # A text may end in the end token by itself; then the tokenizer's own one stands behind it.
    if special and ids[-1:] == [end] and (not text.endswith(tokenizer.eos_token) or ids[-2:] == [end, end]):
        ids.pop()
    return ids


def end_once(ids: list[int], eos_id: int, tail: int) -> list[int]:
    """Append the end token unless it stands among the last `tail` tokens (templates may put a newline behind it)."""
    return ids if eos_id in ids[-tail:] else [*ids, eos_id]


def tokenize_pair(tokenizer: Any, pair: PreferencePair, max_length: int, truncation: str) -> TokenizedPair | Rejection:
    """Encode one pair into at most `max_length` tokens a side.

    Args:
        truncation: "keep_start" cuts a completion's end, "keep_end" cuts the prompt's beginning, "reject" cuts nothing.
    """
    texts = _render(tokenizer, pair)
    if isinstance(texts, Rejection):
        return texts
    prompt, chosen, rejected = texts
    special, tail = (False, 3) if pair.chat else (True, 1)
    prompt_ids, chosen_ids, chosen_apart = encode_completion(tokenizer, prompt, chosen, special)
    _, rejected_ids, rejected_apart = encode_completion(tokenizer, prompt, rejected, special)
    if not prompt_ids:
        return Rejection("the prompt has no tokens")
    chosen_ids = end_once(chosen_ids, tokenizer.eos_token_id, tail)
    rejected_ids = end_once(rejected_ids, tokenizer.eos_token_id, tail)
    return _truncate(prompt_ids, chosen_ids, rejected_ids, chosen_apart or rejected_apart, max_length, truncation)


def _truncate(
    prompt: list[int], chosen: list[int], rejected: list[int], apart: bool, max_length: int, truncation: str
) -> TokenizedPair | Rejection:
    longest = len(prompt) + max(len(chosen), len(rejected))
    truncated = longest > max_length
    if truncated and truncation == "reject":
        return Rejection(f"{longest} tokens, and data.max_length is {max_length}")
    if truncation == "keep_end":
        keep = max_length - max(len(chosen), len(rejected))
        if keep < 1:
            return Rejection(f"a completion leaves no room for the prompt within data.max_length = {max_length}")
        prompt = prompt[-keep:]
    elif len(prompt) >= max_length:
        return Rejection(f"the prompt has {len(prompt)} tokens, and data.max_length is {max_length}")
    room = max_length - len(prompt)
    chosen, rejected = chosen[:room], rejected[:room]
    if chosen == rejected:
        return Rejection("chosen and rejected are the same " + ("after truncation" if truncated else "tokens"))
    return TokenizedPair(prompt, chosen, rejected, [True] * len(chosen), [True] * len(rejected), apart, truncated)


def _render(tokenizer: Any, pair: PreferencePair) -> tuple[str, str, str] | Rejection:
    if not pair.chat:
        return pair.prompt, pair.chosen, pair.rejected  # type: ignore[return-value]
    if tokenizer.chat_template is None:
        raise TokenizerError(
            "the data has message lists, and the tokenizer has no chat template. "
            'Give one: [tokenizer] chat_template = "chatml", or the path of a Jinja file.'
        )
    prompt = tokenizer.apply_chat_template(pair.prompt, tokenize=False, add_generation_prompt=True)
    answers = []
    for name, side in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        whole = tokenizer.apply_chat_template([*pair.prompt, *side], tokenize=False)
        if not whole.startswith(prompt):
            return Rejection(f"the chat template renders the prompt differently once {name!r} follows it")
        answers.append(whole[len(prompt) :])
    return prompt, answers[0], answers[1]
