"""A batch -> log-probs of its completions, in one of several ways.

N sequences, S scored tokens, U distinct pairs (position, target) among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dpo.lm.batch import ScoredTokens, SequenceBatch, collate, collate_shared
from dpo.lm.head import Logps, ScoringLinear, target_logps
from dpo.lm.products import is_narrow
from dpo.lm.sequences import TokenSequence
from dpo.lm.tied import TiedHead


class Way(NamedTuple):
    """A way to compute a model's log-probs. All ways give the same numbers."""

    shared: bool = True  # a prompt is computed once for its completions
    scored_only: bool = True  # the head is called on scored positions only


def sequence_logps(batch: ScoredTokens, logps: Tensor) -> Tensor:
    """Sum [S] log-probs to [N], in float64: a sum of hundreds of nats must still resolve a difference of 1e-6."""
    return batch.grid(logps).sum(-1, dtype=torch.float64)


class LogprobModel(nn.Module):
    """A causal language model that returns log-probs of completions instead of logits."""

    def __init__(self, model: Any, way: Way = Way()):  # noqa: B008 (immutable)
        super().__init__()
        self.model = model
        self.way = way

    def collate(
        self, sequences: list[TokenSequence], pad_id: int, labels: Sequence[int] | None = None
    ) -> SequenceBatch:
        """Lay out sequences for the model's way; `labels` as in `collate_shared`."""
        if self.way.shared:
            return collate_shared(sequences, pad_id, self.model.row_each, labels)
        return collate(sequences, pad_id)

    def forward(self, batch: SequenceBatch, agreement: bool = False) -> Logps:
        """Compute the log-probs [S] of the scored tokens of a batch in either layout."""
        found = self._of_targets(batch, agreement)
        scored = batch.scored.to(found.logps.device)
        return Logps(*(None if values is None else values[scored] for values in found))  # type: ignore[arg-type]

    def _of_targets(self, batch: SequenceBatch, agreement: bool) -> Logps:
        """Compute the log-probs [U] of the distinct pairs (position, target), on the device of the head."""
        if not self.way.scored_only:
            logits = self.model(batch.input_ids, batch.lengths).flatten(0, 1)
            batch = batch.to(logits.device)
            return target_logps(logits[batch.sources], batch.targets, agreement)
        hidden, batch = read(self.model, batch)
        return head_logps(self.model.head(), hidden, batch.targets, agreement)


def read(model: Any, batch: SequenceBatch) -> tuple[Tensor, SequenceBatch]:
    """Compute the hidden states [U, d] that predict the targets; return the batch on their device, too."""
    hidden = model.hidden(batch).flatten(0, 1)
    batch = batch.to(hidden.device)
    return hidden.index_select(0, batch.sources), batch


def head_logps(
    head: Any, hidden: Tensor, targets: Tensor, agreement: bool = False, entropy: bool = False, scale: float = 1.0
) -> Logps:
    """Compute log-probs [U] of targets from hidden states [U, d]: in chunks, if the head is one that can.

    Args:
        scale: the logits are multiplied by this; 1 over a temperature.
    """
    # In float32 a tied head's numbers stay those that old caches hold: its logits are taken whole. Under autocast
    # hidden states and weight differ in dtype, which only the whole head can take.
    kind = hidden.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    chunked = isinstance(head, ScoringLinear) and not autocast
    if chunked or (isinstance(head, TiedHead) and is_narrow(hidden.dtype)):
        return head(hidden, targets, agreement, entropy, scale)
    logits = head(hidden)
    return target_logps(logits if scale == 1 else logits * scale, targets, agreement, entropy)
