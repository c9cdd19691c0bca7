"""What all parts share: the device, its card, the shapes of models, and the pairs."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dpo.lm.model_config import Shape
from dpo.text.tokenizers import byte_tokenizer
from examples.benchmarks.compare import write_model
from examples.benchmarks.gpu import lengths
from examples.benchmarks.workload import Pair
from pipeline.models.cards import Card


def _config(kind: str, hidden: int, inner: int, layers: int, heads: int, keys: int, words: int) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "vocab_size": words,
        "tie_word_embeddings": hidden < 4096,
        "max_position_embeddings": 8192,
        "initializer_range": 0.05,  # logits as wide as a trained model's; at 0.02 all tokens are nearly as likely
    }


MODELS = {
    "Qwen2.5-0.5B": _config("qwen2", 896, 4864, 24, 14, 2, 151_936),
    "Llama-3.2-1B": _config("llama", 2048, 8192, 16, 32, 8, 128_256),
    "Llama-3.1-8B": _config("llama", 4096, 14336, 32, 32, 8, 128_256),  # for the table of targets: fits no card alone
}
MEASURED = ("Qwen2.5-0.5B", "Llama-3.2-1B")
TINY = {"tiny": _config("llama", 32, 48, 2, 4, 2, 512)}


class Setting(NamedTuple):
    """Where and how the parts run."""

    device: torch.device
    card: Card | None  # None: a CPU, or a card that is not in the table; there are no targets of speed then
    tiny: bool
    quantiles: lengths.Quantiles
    work: Path  # for models and checkpoints
    out: Path
    brief: bool = False  # the first model alone, and a quarter of the repeats

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        """The models that are measured."""
        return TINY if self.tiny else {name: MODELS[name] for name in MEASURED[: 1 if self.brief else None]}

    def fewer(self, count: int) -> int:
        """So many repeats, or a quarter of them."""
        return max(1, count // 4) if self.brief else count

    def shape(self, name: str) -> Shape:
        return Shape.of(self.models[name])

    def folder(self, name: str) -> Path:
        """The folder of a model with random weights, written when it is asked for first."""
        model = self.work / name / "model"
        if not (model / "tokenizer_config.json").exists():
            write_model(self.models[name], byte_tokenizer(), self.work / name)
        return model

    def pairs(self, name: str, count: int, seed: int = 0) -> list[Pair]:
        """Pairs of random tokens for a model."""
        drawn = lengths.draw(self.quantiles, count, seed)
        return lengths.pairs_of(drawn, self.models[name]["vocab_size"], seed)

    def synchronize(self) -> None:
        """Wait until the GPU has nothing left to do."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], Any]) -> float:
        """Do some work, and return how long the device took for it."""
        self.synchronize()
        began = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - began

    def fastest(self, work: Callable[[], Any], repeats: int = 10) -> float:
        """The seconds of the fastest of some calls, after one to warm up."""
        work()
        return min(self.seconds(work) for _ in range(repeats))

    def about(self) -> dict[str, Any]:
        """The machine, as every report says it."""
        name = torch.cuda.get_device_name(self.device) if self.on_gpu else platform.processor() or "CPU"
        return {
            "device": name,
            "card": None if self.card is None else self.card.name,
            "tiny": self.tiny,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
        }
