"""One frozen model that answers prompts greedily."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from dpo.lm.adapter_files import ALONE, Worn
from pipeline.models.device import Device
from pipeline.models.load import load_frozen


class Answerer:
    """A model and how it is to answer."""

    def __init__(
        self,
        folder: str,
        dtype: str,
        max_new_tokens: int,
        eos_id: int,
        pad_id: int,
        device: Device,
        worn: Worn = ALONE,
    ):
        self.model: Any = load_frozen(folder, dtype, device, worn)
        self.options = {"max_new_tokens": max_new_tokens, "eos_id": eos_id, "pad_id": pad_id}

    def __call__(self, table: pa.Table) -> pa.Table:
        """Rows of `numbers` and `prompts` (lists of ids) -> `numbers` and the `answers` to them."""
        found = [self.model.generate(prompts, **self.options) for prompts in table["prompts"].to_pylist()]
        kind = pa.list_(pa.list_(pa.int64()))
        return pa.table({"numbers": table["numbers"], "answers": pa.array(found, kind)})
