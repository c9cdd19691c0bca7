"""A tokenizer as plain values: it encodes and decodes by `tokenizers` alone, and asks transformers for chats only.

Importing transformers' own tokenizers takes seconds and loads torch, in every process that encodes rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer


@dataclass(frozen=True, eq=False)
class PlainTokenizer:
    """The part of transformers' interface that rows, checks and answers need; the same ids and texts."""

    backend_tokenizer: Tokenizer
    special_tokens_map: dict[str, str]  # "eos_token", "bos_token", ...: those that there are
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
        """The end token's id; a tokenizer that `load_tokenizer` gives has one."""
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
        """The ids of one text under "input_ids", by default with the tokenizer's own begin and end tokens."""
        return {"input_ids": self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        """The text of some ids."""
        if self.cleans_up:
            return self._whole.decode(ids, skip_special_tokens=skip_special_tokens)
        return self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """The id of one token; that of the unknown token, if there is one, where it is no token."""
        found = self.backend_tokenizer.token_to_id(token)
        return self.unk_token_id if found is None else found

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id."""
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    def apply_chat_template(self, messages: list[dict[str, Any]], **options: Any) -> Any:
        """Render messages by the chat template; the options are those of transformers' method of this name."""
        return self._whole.apply_chat_template(messages, **options)

    @cached_property
    def _whole(self) -> Any:
        """The tokenizer of transformers that these values are of. Loads transformers, and no torch."""
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


# Whether text is cleaned up is decided once, by `plain_values`; transformers decides again, by the kind of model.
CLEANS_UP_ALL = {"clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True}


def plain_values(tokenizer: Any) -> dict[str, Any]:
    """The values of a tokenizer of transformers, as JSON has them; `from_values` is the way back."""
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
    """A tokenizer from what `plain_values` gave."""
    backend = Tokenizer.from_str(values["backend"])
    special = tuple(values["all_special_tokens"])
    return PlainTokenizer(backend, values["special_tokens_map"], special, values["chat_template"], values["cleans_up"])
