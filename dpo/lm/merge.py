"""An adapter and its base -> one model folder's weights, merged in float32, and how much of the adapter they keep."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig

from dpo.lm.adapter_files import Worn
from dpo.lm.adapters import put_on
from dpo.lm.hf import HuggingFaceModel, load_network, without_dropout
from dpo.lm.logprobs import LogprobModel
from dpo.lm.on_disk import on_disk
from dpo.lm.quantized import quantization
from dpo.lm.sequences import TokenSequence
from dpo.lm.weight_files import tensor_headers
from dpo.lm.weights import canonical_tensors, write_weights


class Merged(NamedTuple):
    """Measurements of a merge."""

    lost: float  # share of the adapter's change of the weights that the written ones do not have
    gap: float  # mean difference of a token's log-prob between written weights and base with adapter, in nats
    dtype: str
    untied: bool  # whether head and embedding were one tensor before, and are two now


def type_of(base: Path) -> str:
    """The data type of a base's largest tensor."""
    headers = tensor_headers(base)
    return max(headers.values(), key=lambda header: math.prod(header.shape)).dtype


def merge(
    base: Path, worn: Worn, dtype: str, out: Path, sequences: list[TokenSequence], most_lost: float, trained: str
) -> Merged:
    """Merge an adapter into its base, and write the weights if little enough is lost.

    Args:
        dtype: of the written weights.
        sequences: for the gap.
        most_lost: share of the adapter above which nothing is written.
        trained: the data type of training, in which a quantized base computes.
    """
    assert worn.adapter is not None
    config = without_dropout(AutoConfig.from_pretrained(base, trust_remote_code=False))
    # A quantized base is merged as it computes: quantized once, and then taken out of its few bits.
    kind = getattr(torch, trained) if worn.quantize != "none" else torch.float32
    before = _logps(HuggingFaceModel.load(base, {}, kind, worn=worn), sequences)
    network = load_network(base, config, kind, **quantization(worn.quantize, kind))
    if worn.quantize != "none":
        network = network.dequantize().float()
    tied = _tied(network)
    adapted = put_on(network, Path(worn.adapter), torch.float32)
    network, lost = adapted.merged(getattr(torch, dtype))
    untied = tied and not _tied(network)
    for parameter in network.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype)).float()
    gap = float((_logps(HuggingFaceModel(network), sequences) - before).abs().mean())
    if lost <= most_lost:
        tensors = ((name, tensor.to(getattr(torch, dtype))) for name, tensor in canonical_tensors(network))
        write_weights(out, on_disk(network, tensors))
    return Merged(lost, gap, dtype, untied)


def _tied(network: Any) -> bool:
    """Whether head and embedding share their weight."""
    head, embedding = network.get_output_embeddings(), network.get_input_embeddings()
    return head.weight is embedding.weight


@torch.inference_mode()
def _logps(model: HuggingFaceModel, sequences: list[TokenSequence]) -> Tensor:
    """The log-probs of all scored tokens, one sequence after another."""
    ours = LogprobModel(model)
    ours.way = ours.way._replace(shared=False)
    found = torch.cat([ours(ours.collate([sequence], 0)).logps for sequence in sequences])
    model.restore_attention()
    return found.double()
