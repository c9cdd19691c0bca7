"""The loss of a recipe of another program -> [loss]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KINDS = {"dpo": "sigmoid", "bco": "bco_pair", "sppo": "sppo_hard", "exo": "exo_pair", "nca": "nca_pair"}
PAIRED = ("sigmoid_norm", "sigmoid", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard")
PAIRED += ("aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "orpo", "simpo", "cpo")
IMITATION = ("rpo_alpha", "pref_ftx", "nll_loss_coef")  # weight of a likelihood term
OFF = (None, False, 0, [])


def loss_of(given: Mapping[str, Any], settings: dict[str, Any]) -> set[str]:
    """Fill in the loss, or several with weights; returns the words that were dealt with."""
    taken = {word for word in ("loss_type", "pref_loss", "rl") if given.get(word) is not None}
    named = next((given[word] for word in ("loss_type", "pref_loss", "rl") if word in taken), "sigmoid")
    if given.get("ipo") is True:
        named, taken = "ipo", {*taken, "ipo"}
    kinds = [KINDS.get(str(name), str(name)) for name in (named if isinstance(named, list) else [named])]
    if not all(kind in PAIRED for kind in kinds):
        return set()
    beta = next((given[word] for word in ("beta", "pref_beta", "rl_beta") if word in given), 0.1)
    tables: list[dict[str, Any]] = [_table(kind, beta, given) for kind in kinds]
    for table, weight in zip(tables, given.get("loss_weights") or [], strict=False):
        table["weight"] = float(weight)
    extra = next((word for word in IMITATION if isinstance(given.get(word), int | float) and given[word] > 0), None)
    if extra is not None:
        tables.append({"kind": "sft", "weight": float(given[extra])})
    if len(tables) > 1:
        settings["loss"] = tables
    else:
        settings.update({f"loss.{key}": value for key, value in tables[0].items()})
    words = {"beta", "pref_beta", "rl_beta", "loss_weights", *IMITATION, *OPTIONS, *SMOOTHING}
    lost = {word for word in (*OPTIONS, *SMOOTHING) if given.get(word) not in OFF and word not in _used(kinds)}
    return (taken | (words & given.keys())) - lost


# Fields of others that are options of a kind, and their names here.
OPTIONS = {"simpo_gamma": ("simpo", "gamma"), "cpo_alpha": ("cpo", "nll_weight"), "discopop_tau": ("discopop", "tau")}
SMOOTHING = ("label_smoothing", "dpo_label_smoothing")
SMOOTHED = ("sigmoid", "robust", "exo_pair", "aot", "aot_unpaired", "cpo")


def _used(kinds: list[str]) -> set[str]:
    options = {word for word, (kind, _) in OPTIONS.items() if kind in kinds}
    return options | (set(SMOOTHING) if {*kinds} & {*SMOOTHED} else set())


def _table(kind: str, beta: float, given: Mapping[str, Any]) -> dict[str, Any]:
    table: dict[str, Any] = {"kind": kind}
    if kind == "orpo":
        table["odds_weight"] = float(given.get("orpo_alpha", beta))
    elif kind != "sft":
        table["beta"] = float(beta)
    smoothing = next((given[word] for word in SMOOTHING if given.get(word)), None)
    if smoothing is not None and kind in SMOOTHED:
        table["label_smoothing"] = float(smoothing)
    for word, (of, key) in OPTIONS.items():
        if of == kind and word in given:
            table[key] = float(given[word])
    return table
