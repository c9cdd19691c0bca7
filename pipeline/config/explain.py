"""Pydantic's validation errors -> one line per key: its name, its value and the fix."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from pipeline.config.hints import hint, kinds_of, of_list, of_value
from pipeline.config.section import PATTERNS
from pipeline.config.words import WORDS

# Sections that other files give as one path, and the key of it.
OF_A_PATH = {"deepspeed": "config", "tokenizer": "path", "policy": "path"}
ONLY_HUGGING_FACE = (("policy", "adapter"), ("policy", "quantize"))
# Words of peft that are no keys of [policy.adapter], and what to write for them.
OF_PEFT = {
    "lora_alpha": "write alpha",
    "lora_r": "write r",
    "rank": "write r",
    "lora_dropout": "dropout is off in every model here, so that policy and reference are one function; leave it out",
    "dropout": "dropout is off in every model here, so that policy and reference are one function; leave it out",
    "bias": "biases of the base are never trained; leave it out",
    "seed": "write run.seed",
    "loraplus_lr_ratio": "write lora_plus_ratio",
    "base_model_name_or_path": "write policy.path",
    "peft_type": "adapters are LoRA; leave it out",
    "task_type": "it is always CAUSAL_LM; leave it out",
}


def by_key(model: type[BaseModel], error: ValidationError) -> dict[tuple[Any, ...], list[Any]]:
    """Group pydantic's errors by (section, field). A value that may have several types has one error per type."""
    found: dict[tuple[Any, ...], list[Any]] = {}
    for item in error.errors():
        section, *rest = item["loc"] or ("",)
        if rest and rest[0] in kinds_of(model, str(section)):  # pydantic inserts the kind after the section's name
            rest = rest[1:]
        inner = section == "policy" and rest[:1] == ["adapter"] and any(isinstance(part, str) for part in rest[1:])
        found.setdefault((section, *rest[: 2 if inner else 1]), []).append(item)
    return found


def explain(model: type[BaseModel], key: tuple[Any, ...], items: list[Any]) -> str:
    """Explain in one line the errors of one key."""
    items = _of_sources(items)
    item = items[0]
    where, value, kind = ".".join(map(str, key)), item["input"], item["type"]
    if key == ("loss", "losses") and len(item["loc"]) > 3:  # [[loss]] tables
        return _explain_entry(item)
    if item.get("source"):
        number = "".join(f"[{part}]" for part in item["loc"] if isinstance(part, int))
        where = f"{where}{number}.{item['loc'][-1]}"
        if kind == "missing":
            return f"{where} is missing: a source needs a path"
        if kind == "extra_forbidden":
            return f"{where} = {value!r}: there is no such key; there are: path, weight, split, name, columns"
        return f"{where} = {value!r}: it must be {item['msg'].removeprefix('Input should be ')}"
    if kind == "extra_forbidden" and key in ONLY_HUGGING_FACE:
        return f'{where} works with policy.kind = "huggingface" only; leave it out with {item["loc"][1]}'
    if kind == "extra_forbidden" and key[:-1] == ("policy", "adapter") and key[-1] in OF_PEFT:
        return f"{where} = {value!r}: there is no such key; {OF_PEFT[key[-1]]}"
    if kind == "extra_forbidden":
        names = _fields_at(model, key[:-1], item["loc"])
        what = "section" if len(key) == 1 else "key"
        return f"{where} = {value!r}: there is no such {what}; {hint(model, key, value, names)}"
    if kind == "missing":
        return f"{where} is missing; add it under [{key[0]}]" if len(key) > 1 else f"[{where}] is missing"
    if kind in ("model_type", "model_attributes_type"):
        alone = f"; a path alone is {where}.{OF_A_PATH[where]}" if where in OF_A_PATH and value else ""
        return f"{where} = {value!r}: it is a section; write [{where}] above its keys{alone}"
    if kind == "union_tag_not_found":
        return f"{where}.kind is missing; set it to one of {', '.join(kinds_of(model, key[0]))}"
    if kind == "union_tag_invalid":
        given, there = value.get("kind"), item["ctx"]["expected_tags"]
        return f"{where}.kind = {given!r}: it must be one of {there}{of_value(f'{where}.kind', given)}"
    if kind == "value_error":
        return str(item["ctx"]["error"])
    if kind == "string_pattern_mismatch":
        return f"{where} = {value!r}: it must {PATTERNS[item['ctx']['pattern']]}"
    musts = dict.fromkeys(i["msg"].removeprefix("Input should be ") for i in items if _entry(i) is None)
    inside = [i for i in items if _entry(i) is not None]
    if inside:  # the value is a list with a wrong entry
        where, value = f"{where}[{_entry(inside[0])}]", inside[0]["input"]
    said = f"{where} = {value!r}: it must be {' or '.join(musts)}{of_value(where, value) or of_list(value)}"
    return said.replace("a valid boolean", "true or false").replace("dictionary", "table")


def _of_sources(items: list[Any]) -> list[Any]:
    """Select the errors of a source, which is a path or a table { path = ... }.

    If a table was given, return its first error; otherwise drop the errors that only say that a table is missing.
    """
    inside = [item for item in items if "Source" in item["loc"][:-1]]
    if inside:
        parts = [part for part in inside[0]["loc"] if isinstance(part, int) or part in ("data", "train", "eval")]
        return [{**item, "loc": (*parts, item["loc"][-1]), "source": True} for item in inside[:1]]
    return [item for item in items if item["type"] not in ("model_type", "model_attributes_type")] or items


def _explain_entry(item: Any) -> str:
    """Explain an error in one of several [[loss]] tables. Its location is: loss, mixture, losses, 0, kind, key."""
    _, _, _, number, *rest = item["loc"]
    where = ".".join([f"loss[{number}]", *map(str, rest[1:])])
    if item["type"] == "extra_forbidden":
        word = WORDS.get(str(rest[-1]))
        return f"{where} = {item['input']!r}: there is no such key{f'; {word.advice}' if word else ''}"
    if item["type"] == "union_tag_not_found":
        return f"{where}.kind is missing; each [[loss]] has one"
    if item["type"] == "union_tag_invalid":
        return f"{where}.kind = {item['input']['kind']!r}: it must be one of {item['ctx']['expected_tags']}"
    if item["type"] == "value_error":
        return f"{where}: {item['ctx']['error']}"
    return f"{where} = {item['input']!r}: it must be {item['msg'].removeprefix('Input should be ')}"


def _entry(item: Any) -> int | None:
    """Return the index, from 0, of the list entry that an error is about; None outside a list."""
    return next((part for part in item["loc"] if isinstance(part, int)), None)


def _fields_at(model: type[BaseModel], keys: tuple[Any, ...], loc: tuple[Any, ...]) -> list[str]:
    here: Any = model
    for key in keys:
        here = here.model_fields[key].annotation
        inner = [option for option in get_args(here) if isinstance(option, type) and issubclass(option, BaseModel)]
        if len(inner) == 1:  # a section that may be left out
            here = inner[0]
        for option in get_args(here):  # a tagged union: take the variant that the location names
            kinds = getattr(option, "model_fields", {}).get("kind")
            if kinds is not None and set(get_args(kinds.annotation)) & set(loc):
                here = option
    return sorted(here.model_fields, key=lambda name: name != "kind")  # `kind` first: it decides the others
