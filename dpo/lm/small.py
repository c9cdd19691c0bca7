"""A model folder's kind, tried on a random model of two layers: no weights are read, and little is computed."""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path

import torch

from dpo.lm.hf import HuggingFaceModel
from dpo.lm.judge import library_class
from dpo.lm.logprobs import LogprobModel
from dpo.lm.model_config import ModelError, is_x_transformers, read_config
from dpo.lm.trial import trial_sequences, truth, try_ways

MOST_PARAMETERS = 150_000_000  # of a random model; none that is larger is made
VOCABULARY = 1024  # tokens of a random model at most: embeddings and head mix nothing


def try_small(folder: Path) -> None:
    """Ask a random model of a folder's kind whether a sequence's log-probs depend on what stands behind or beside it.

    Nothing is asked where no such model can be made, or where this machine cannot compute it. The model itself is
    tried where it is loaded.

    Raises:
        ModelError: they do.
    """
    if is_x_transformers(read_config(folder)):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a library that is only asked
        found = _small_model(folder)
        try:
            if found is not None:
                try_ways(found[0], read_config(folder), found[1], may_share=False, device=torch.device("cpu"))
        except ModelError as error:
            raise ModelError(f"{folder}: {error}") from None


def _small_model(folder: Path) -> tuple[LogprobModel, int] | None:
    """Make a random model of two layers that can compute; return it with the size of its vocabulary."""
    config, kind = library_class(folder)
    text = config.get_text_config()
    if text.vocab_size > VOCABULARY:
        text.vocab_size = VOCABULARY
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            setattr(text, name, None)
    with suppress(NotImplementedError):  # a type may count its layers under two names, and have no third one set
        text.num_hidden_layers = min(getattr(text, "num_hidden_layers", 2), 2)
    try:
        with torch.device("meta"):
            if sum(p.numel() for p in kind(config).parameters()) > MOST_PARAMETERS:
                return None
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            network = kind(config).eval()
            for matrix in (p for p in network.parameters() if p.dim() > 1):
                matrix.add_(torch.randn_like(matrix) / matrix.shape[-1] ** 0.5)  # as drawn, they hardly mix tokens
            model = LogprobModel(HuggingFaceModel(network))
            computed = truth(model, trial_sequences(text.vocab_size), torch.device("cpu"))
    except Exception:  # a list of layers of another length, a package that is not there, ...
        return None
    return (model, text.vocab_size) if computed.isfinite().all() else None
