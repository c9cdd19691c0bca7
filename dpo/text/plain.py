"""A tokenizer as plain values. It encodes and decodes with `tokenizers` alone, and uses transformers only for chats.

Importing transformers' own tokenizers takes seconds and loads torch, in every process that encodes rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer


@dataclass(frozen=True, eq=False)
class PlainTokenizer:
    """The part of transformers' tokenizer interface that rows, checks and answers need. Ids and texts are the same."""

    backend_tokenizer: Tokenizer
    special_tokens_map: dict[str, str]  # "eos_token", "bos_token", ... -> the token; only those that exist
    all_special_tokens: tuple[str, ...]
    chat_template: str | dict[str, str] | None
    cleans_up: bool  # decoding removes blanks before punctuation

    @property
    def eos_token(self) -> str | None:
        return self.special_tokens_map.get("eos_token")

    @property
    def bos_token(self) -> str | None:
        return self.special_tokens_map.get("bos_token")

    @property
    def eos_token_id(self) -> int:
        """The id of the end token. Every tokenizer from `load_tokenizer` has one."""
        found = self._id_of("eos_token")
        assert found is not None
        return found

    @property
    def bos_token_id(self) -> int | None:
        return self._id_of("bos_token")

    @property
    def unk_token_id(self) -> int | None:
        return self._id_of("unk_token")

    @property
    def pad_token_id(self) -> int | None:
        return self._id_of("pad_token")

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """Return {"input_ids": ids} of one text, by default with the tokenizer's own begin and end tokens."""
        return {"input_ids": self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        """Return the text of token ids."""
        if self.cleans_up:
            return self._whole.decode(ids, skip_special_tokens=skip_special_tokens)
        return self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """Return the id of a token. For an unknown token, return the id of the unknown token, or None."""
        found = self.backend_tokenizer.token_to_id(token)
        return self.unk_token_id if found is None else found

    def get_vocab(self) -> dict[str, int]:
        """Return every token with its id."""
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    def apply_chat_template(self, messages: list[dict[str, Any]], **options: Any) -> Any:
        """Render messages with the chat template. The options are those of transformers' method of the same name."""
        return self._whole.apply_chat_template(messages, **options)

    @cached_property
    def _whole(self) -> Any:
        """The same tokenizer as an object of transformers. Imports transformers, but not torch."""
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast(
            tokenizer_object=self.backend_tokenizer,
            chat_template=self.chat_template,
            clean_up_tokenization_spaces=self.cleans_up,
            **CLEANS_UP_ALL,
            **self.special_tokens_map,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_whole"}

    def _id_of(self, name: str) -> int | None:
        token = self.special_tokens_map.get(name)
        return None if token is None else self.backend_tokenizer.token_to_id(token)


# `plain_values` decides whether decoded text is cleaned up. This option stops transformers from deciding it again by
# the kind of model.
CLEANS_UP_ALL = {"clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True}


def plain_values(tokenizer: Any) -> dict[str, Any]:
    """Convert a tokenizer of transformers to JSON values; `from_values` is the inverse."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    corrupts = type(backend.model).__name__ == "BPE" and not _cleans_up_all(tokenizer)
    return {
        "backend": backend.to_str(),
        "special_tokens_map": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "all_special_tokens": [str(token) for token in tokenizer.all_special_tokens],
        "chat_template": tokenizer.chat_template,
        "cleans_up": bool(tokenizer.clean_up_tokenization_spaces) and not corrupts,
    }


def _cleans_up_all(tokenizer: Any) -> bool:
    (name,) = CLEANS_UP_ALL
    return bool(getattr(tokenizer, name))


def from_values(values: dict[str, Any]) -> PlainTokenizer:
    """Make a tokenizer from the result of `plain_values`."""
    backend = Tokenizer.from_str(values["backend"])
    special = tuple(values["all_special_tokens"])
    return PlainTokenizer(backend, values["special_tokens_map"], special, values["chat_template"], values["cleans_up"])
