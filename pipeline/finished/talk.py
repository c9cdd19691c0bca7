"""Lines that somebody types -> a model's answers, each rendered as the run rendered its prompts."""

from __future__ import annotations

from itertools import islice
from typing import Any, NamedTuple

import torch
from jinja2 import TemplateError

from dpo.lm.model_config import position_limit, read_config
from dpo.text.bounds import TooSlow, bounded_memory, bounded_time
from dpo.text.encode import Encoder
from dpo.text.messages import Message
from dpo.text.pairs import PreferencePair
from dpo.text.plain import PlainTokenizer
from dpo.text.shapes import Reading
from dpo.text.strings import mended
from dpo.text.template import FAILS, Template
from pipeline.data.pieces import found_in
from pipeline.data.rows import read_rows
from pipeline.data.sources import data_files
from pipeline.data.tokenizer import pad_id
from pipeline.errors import InputError, first_line
from pipeline.finished.policies import Policy
from pipeline.models.device import Device
from pipeline.models.load import load_frozen
from pipeline.place import Place

FIRST_ROWS = 100  # of the data, among which a usable pair is looked for


class Manner(NamedTuple):
    """How answers are made."""

    temperature: float  # 0: always the likeliest token
    max_tokens: int


def in_turns(place: Place, tokenizer: PlainTokenizer) -> bool:
    """Whether the run's prompts were messages: as its first pair says, or the chat template where the data is gone."""
    templated, data = tokenizer.chat_template is not None, place.config.data
    if not templated:
        return False
    try:
        file, *_ = data_files(data, place.workspace, place.run_dir)
    except InputError:
        return templated
    for row in islice(read_rows(file.path), FIRST_ROWS):
        for read in found_in(row, Reading(file.columns, file.verdict, tuple(data.ignore))).pairs:
            pair = mended(read, data.strings).pair
            if isinstance(pair, PreferencePair):
                return pair.chat
    return templated


class Conversation:
    """All that was said to one model, and its answers. A model of plain text is asked each line by itself."""

    def __init__(self, tokenizer: PlainTokenizer, options: dict[str, Any], turns: bool):
        """
        Args:
            options: further arguments of the chat template.
            turns: whether the model was trained on messages.
        """
        self.turns = turns
        self._encoder, self._template = Encoder(tokenizer, cut=False), Template(tokenizer, options)
        self._said: list[Message] = []

    def ids(self, line: str) -> list[int]:
        """The token ids of all that was said, and of a new line.

        Raises:
            InputError: the chat template refuses it.
        """
        text = self._rendered([*self._said, {"role": "user", "content": line}]) if self.turns else line
        return self._encoder(text, 0, special=not self.turns)

    def add(self, line: str, answer: str) -> None:
        """Keep a line and its answer, which what comes later builds upon."""
        if self.turns:
            self._said += [{"role": "user", "content": line}, {"role": "assistant", "content": answer}]

    def forget(self) -> None:
        """Begin a new conversation."""
        self._said = []

    def _rendered(self, messages: list[Message]) -> str:
        try:
            with bounded_time(), bounded_memory():
                return self._template(messages, ask=True, first=len(messages))
        except TooSlow:
            said = "takes too long"
        except MemoryError:
            said = "takes too much memory"
        except (TemplateError, *FAILS) as error:
            said = f"fails: {first_line(error)}"
        raise InputError(f"the chat template {said}; /new begins a conversation without what was said before")


class Talker:
    """A model, and its conversation."""

    def __init__(self, place: Place, policy: Policy, tokenizer: PlainTokenizer, turns: bool, manner: Manner):
        gpus = min(place.config.reference.gpus_per_actor, torch.cuda.device_count())
        device = Device("cuda", None, gpus) if gpus else Device("cpu", None)
        self._model: Any = load_frozen(str(policy.folder), place.config.train.dtype, device, policy.worn)
        self._limit = position_limit(read_config(policy.folder))
        self._tokenizer, self._manner = tokenizer, manner
        self.conversation = Conversation(tokenizer, place.config.tokenizer.template_options, turns)

    def answer(self, line: str) -> str:
        """The answer to a line, as text; the conversation stays as it is.

        Raises:
            InputError: the chat template refuses it, or the model has no positions left.
        """
        ids, most = self.conversation.ids(line), self._manner.max_tokens
        if self._limit is not None:
            most = min(most, self._limit - len(ids))
        if most < 1:
            raise InputError(
                f"what was said has {len(ids):,} tokens, and the model has {self._limit:,} positions, which leaves no "
                "room for an answer; /new begins a new conversation"
            )
        ends = {"eos_id": self._tokenizer.eos_token_id, "pad_id": pad_id(self._tokenizer)}
        (found,) = self._model.generate([ids], most, temperature=self._manner.temperature, **ends)
        return self._tokenizer.decode(found, skip_special_tokens=True)
