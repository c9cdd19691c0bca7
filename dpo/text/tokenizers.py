"""A folder, a hub name or "bytes" -> a tokenizer that can end a completion, by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from dpo.errors import InputError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BYTES = "bytes"
NEEDS = (
    "ray-align needs a tokenizer.json: name a tokenizer that has one (tokenizer.path), or convert yours, for example "
    "by AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER) where sentencepiece or tiktoken is installed."
)


class TokenizerError(InputError):
    """A tokenizer that cannot be loaded or cannot do what the data asks of it."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that needs no files: one id a byte (0-255, printable ones first), then <eos> and <pad>."""
    from transformers import PreTrainedTokenizerFast

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
    tokenizer: Any = byte_tokenizer() if path == BYTES else _load(path)
    if eos_token is not None:
        tokenizer.add_special_tokens({"eos_token": eos_token})
    model = tokenizer.backend_tokenizer.model
    if isinstance(model, models.BPE) and model.dropout:
        model.dropout = None  # with it, one text has other ids each time
    if tokenizer.eos_token_id is None:
        raise TokenizerError(
            f"the tokenizer {path!r} has no end-of-sequence token, so no completion could end. "
            'Name one, for example: [tokenizer] eos_token = "<|endoftext|>" (it is added if the vocabulary lacks it).'
        )
    if chat_template is not None:
        tokenizer.chat_template = _template_text(chat_template)
    return tokenizer


def _load(path: str) -> PreTrainedTokenizerBase:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = Path(path)
    if folder.is_dir() and not (folder / "tokenizer_config.json").exists():
        if (folder / "tokenizer.json").exists():
            return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
            return _byte_pair(folder)
    try:
        found = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError, StrictDataclassError) as error:
        if folder.is_dir() and not (folder / "tokenizer.json").exists() and (folder / "tokenizer.model").exists():
            raise TokenizerError(f"the tokenizer {path!r} has a tokenizer.model alone. {NEEDS}") from error
        raise TokenizerError(
            f"no tokenizer could be loaded from {path!r}: {first_line(error)}{_own_code(folder)}"
        ) from error
    if not found.is_fast:
        raise TokenizerError(f"the tokenizer {path!r} is {type(found).__name__}, written in Python. {NEEDS}")
    return found


def _own_code(folder: Path) -> str:
    """A sentence about code that comes with a tokenizer."""
    try:
        brings = "auto_map" in json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return ""
    said = " Code that comes with a tokenizer is never run; take one of a class that transformers itself has."
    return said if brings else ""


def _byte_pair(folder: Path) -> PreTrainedTokenizerFast:
    """GPT-2's two-file form, which names no special tokens."""
    from transformers import PreTrainedTokenizerFast

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
