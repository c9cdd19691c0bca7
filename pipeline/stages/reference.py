"""The start of training -> the reference that [reference] names."""

from __future__ import annotations

from dpo.lm.adapter_files import kind_of
from pipeline.models.adapted import opened
from pipeline.models.asked import BASE, START
from pipeline.models.identity import identity_of
from pipeline.models.judged import digest_of_start
from pipeline.models.start import Weights
from pipeline.place import Place
from pipeline.stages.preflight import Inputs


def reference_of(place: Place, inputs: Inputs, start: Weights) -> Weights:
    """The model whose log-probs are the reference: the only place that reads reference.model."""
    name, folder = place.config.reference.model, inputs.reference
    if name == START:
        return start
    if name == BASE:
        return start.base
    assert folder is not None
    if kind_of(folder) == "adapter":
        base = start.base
        return base._replace(adapter=opened(place, folder, base.folder, base.digest))
    return Weights(folder, digest_of_start(place, folder), quantize=start.quantize, device=start.device)


def compared_as(place: Place, start: Weights, reference: Weights) -> str:
    """The function that the guard compares the reference with: the start of training, its base, or nothing.

    By their identities: an adapter that changes nothing, or a copy of the start, is the start.
    """
    identity, dtype = identity_of(reference, place.config.train.dtype)[0], place.config.train.dtype
    if identity == identity_of(start, dtype)[0]:
        return "start"
    alone = start._replace(adapter=None)
    return "base" if start.adapter is not None and identity == identity_of(alone, dtype)[0] else "apart"
