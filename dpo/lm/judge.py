"""Whether a model folder can be trained, by the library's own answers: no remote code, and no weights are read."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import torch

from dpo.lm.adapter_files import refuse_no_model
from dpo.lm.model_config import ModelError, is_x_transformers, read_config
from dpo.lm.weight_files import Header, by, tensor_headers, unlike

NAMED = 3  # tensors that a message names


def judge(folder: Path) -> None:
    """Refuse a folder whose model cannot be trained, or would come up with other weights than its files hold.

    Raises:
        ModelError, WeightsError: one paragraph with the reason and the fix.
    """
    refuse_no_model(folder)
    config = read_config(folder)
    _refuse_by_config(folder, config)
    if is_x_transformers(config):
        _against_x_transformers(folder, config, tensor_headers(folder))
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a library that is only asked
        whole, kind = library_class(folder)
        _against_class(folder, whole, kind, tensor_headers(folder))


def _refuse_by_config(folder: Path, config: dict[str, Any]) -> None:
    quantized = config.get("quantization_config")
    if quantized:
        method = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else "unknown"
        raise ModelError(
            f"{folder} is quantized (quantization_config in its config.json, method {method}), and such weights "
            "cannot be trained. Take the unquantized model, or load it with transformers, call dequantize(), and "
            "save the result."
        )
    if config.get("is_encoder_decoder"):
        raise ModelError(
            f"{folder} is an encoder-decoder ({config.get('model_type')}); ray-align trains decoders only. Take "
            "a causal language model, of a type in examples/guides/models.md."
        )


def library_class(folder: Path) -> tuple[Any, Any]:
    """Return the config and the class that transformers has for a folder's causal language model.

    Raises:
        ModelError: it has none.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers import __version__ as version

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # each type's config raises classes of its own
        brought = "auto_map" in read_config(folder)
        code = "Code that comes with a model is never run; t" if brought else "T"
        raise ModelError(
            f"transformers {version} cannot read {folder / 'config.json'}: {_first_sentence(error)} {code}ake a model "
            "whose config.json is whole, of a type that transformers itself has (examples/guides/models.md)."
        ) from None
    try:
        return config, AutoModelForCausalLM._model_mapping[type(config)]
    except KeyError:
        raise ModelError(
            f"{folder} is of the type {config.model_type!r}, which is no causal language model of transformers "
            f"{version}. ray-align trains those that AutoModelForCausalLM loads."
        ) from None


def _first_sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = " ".join(lines[: 2 if lines[0].endswith(":") else 1])  # a validator's first line says only which field
    line = " ".join(line.split())
    return line if line.endswith(".") else f"{line}."


def _against_class(folder: Path, config: Any, kind: Any, headers: dict[str, Header]) -> None:
    refuse_made_up(folder, _without_numbers(folder, config, kind, headers)[1])


def _without_numbers(folder: Path, config: Any, kind: Any, headers: dict[str, Header]) -> tuple[Any, dict[str, Any]]:
    """Hand the library's own loader tensors without numbers; return the network, and what it could not use."""
    empty = {name: torch.empty(header.shape, device="meta") for name, header in headers.items()}
    try:
        return kind.from_pretrained(
            None,
            config=config,
            state_dict=empty,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception as error:  # a class may refuse its config in any way
        raise ModelError(
            f"transformers cannot build {kind.__name__} from {folder / 'config.json'}: {_first_sentence(error)}"
        ) from None


def unlike_start(written: Path, start: Path, dtype: str) -> list[str]:
    """Say how written weights differ from those that transformers would write of their start.

    These are the start's own, but for tied tensors, and for names and tensors that the library reads from older files
    and does not write.

    Args:
        dtype: as in `unlike`.
    """
    theirs, ours = tensor_headers(start), tensor_headers(written)
    if is_x_transformers(read_config(start)):
        return unlike(ours, theirs, dtype)
    from transformers.core_model_loading import revert_weight_conversion

    from dpo.lm.weights import canonical_tensors

    whole, kind = library_class(start)
    network, _ = _without_numbers(start, whole, kind, theirs)
    tensors = revert_weight_conversion(network, dict(canonical_tensors(network)))
    own = max(theirs.values(), key=lambda header: math.prod(header.shape)).dtype
    expected = {n: Header(theirs[n].dtype if n in theirs else own, tuple(t.shape)) for n, t in tensors.items()}
    held = network.state_dict()
    for pair in network.all_tied_weights_keys.items():
        names = revert_weight_conversion(network, {name: held[name] for name in pair}).keys()
        if not names.isdisjoint(ours):  # one of two is enough
            expected, ours = ({n: h for n, h in of.items() if n not in names} for of in (expected, ours))
    return unlike(ours, expected, dtype)


def _against_x_transformers(folder: Path, config: dict[str, Any], headers: dict[str, Header]) -> None:
    from dpo.lm.weights import canonical_tensors
    from dpo.lm.x_transformers import XTransformersModel

    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in canonical_tensors(XTransformersModel(config).network)}
    there = {name: header.shape for name, header in headers.items()}
    found = {
        "mismatched_keys": [(n, there[n], s) for n, s in wanted.items() if n in there and there[n] != s],
        "missing_keys": wanted.keys() - there.keys(),
        "unexpected_keys": there.keys() - wanted.keys(),
    }
    refuse_made_up(folder, found)


def refuse_made_up(folder: Path, found: dict[str, Any]) -> None:
    """Refuse a folder whose tensors are not exactly those of the model.

    Args:
        found: what transformers' loaders return as loading info. They leave out names that a class is known to lack.

    Raises:
        ModelError: names the first of the tensors that are of another shape, missing, or left over.
    """
    shapes = [f"{name} ({by(a)} in the file, {by(b)} in the model)" for name, a, b in found["mismatched_keys"]]
    for names, said, mend in (
        (shapes, "have another shape than config.json says", "Take weights and config.json from one model."),
        (
            found["missing_keys"],
            "are missing and would be made up at random",
            "Take the whole model with its head, as AutoModelForCausalLM saves it.",
        ),
        (
            found["unexpected_keys"],
            "are not of the model of config.json and would be lost",
            "Take weights and config.json from one causal language model, without other heads or adapters.",
        ),
    ):
        if names:
            first = ", ".join(sorted(names)[:NAMED]) + (", ..." if len(names) > NAMED else "")
            raise ModelError(f"{folder}: tensors {said} ({len(names)}): {first}. {mend}")


def _by(shape: Any) -> str:
    return " x ".join(map(str, shape)) or "a number"
