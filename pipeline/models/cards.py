"""Cards that jobs run on: their memory and speed by name, and the one in this machine."""

from __future__ import annotations

import re
from typing import NamedTuple


class Card(NamedTuple):
    """A model of GPU."""

    name: str
    memory: float  # bytes
    bfloat16_tflops: float  # peak of dense products; of a card without bfloat16 units that of float32
    float32_tflops: float
    bandwidth: float  # of its memory, in bytes per second

    def tflops(self, float32: bool) -> float:
        """Return the peak in a training's dtype."""
        return self.float32_tflops if float32 else self.bfloat16_tflops

    def __str__(self) -> str:
        return f"{self.name} ({self.memory / 1e9:.0f} GB)"


# From NVIDIA's data sheets, without sparsity; the SXM form of a card where there are several.
CARDS = {
    card.name: card
    for card in (
        Card("A100-40GB", 40e9, 312, 19.5, 1.56e12),
        Card("A100-80GB", 80e9, 312, 19.5, 2.04e12),
        Card("H100", 80e9, 989, 67, 3.35e12),
        Card("H200", 141e9, 989, 67, 4.8e12),
        Card("B200", 180e9, 2250, 75, 7.7e12),
        Card("L4", 24e9, 121, 30.3, 0.3e12),
        Card("L40S", 48e9, 362, 91.6, 0.864e12),
        Card("A10G", 24e9, 70, 31.5, 0.6e12),
        Card("V100-16GB", 16e9, 15.7, 15.7, 0.9e12),
        Card("V100-32GB", 32e9, 15.7, 15.7, 0.9e12),
        Card("T4", 16e9, 8.1, 8.1, 0.32e12),
        Card("RTX-4090", 24e9, 165, 82.6, 1.008e12),
    )
}


def card_named(name: str, memory: float) -> Card | None:
    """Find a card by the name that its driver gives, such as "NVIDIA A100-SXM4-40GB"; None if it is not in the table.

    Args:
        memory: its bytes, as the driver counts them: they replace the table's, and tell two of one name apart.
    """
    words = set(re.split(r"[^0-9A-Z]+", name.upper()))
    found = [card for card in CARDS.values() if set(re.sub(r"-\d+GB$", "", card.name).split("-")) <= words]
    if not found:
        return None
    return min(found, key=lambda card: abs(card.memory - memory))._replace(memory=memory)


def memory_of(kind: str) -> float | None:
    """Return the bytes of what Ray calls an accelerator type, such as "A100" or "A100-80G"; None if it is not known.

    Of two cards of one name the smaller one counts.
    """
    names = (name for name in CARDS if kind in (name, re.sub(r"-\d+GB$", "", name), name.removesuffix("B")))
    return min((CARDS[name].memory for name in names), default=None)


def local_card(number: int = 0) -> Card | None:
    """Return this machine's GPU of that number; None if it has none, or one that is not in the table."""
    import torch  # whoever only looks into the table does without

    if not torch.cuda.is_available():
        return None
    return card_named(torch.cuda.get_device_name(number), torch.cuda.get_device_properties(number).total_memory)
