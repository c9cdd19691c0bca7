"""A recipe of another program, a few flags, and what data, model and machine are -> a configuration."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.config import Config
from pipeline.config.overrides import overrides_of
from pipeline.config.recipes import Recipe, fields_of, program_of, translate
from pipeline.errors import ConfigError, InputError, first_line

ROWS = 256  # of the data, that are looked at
LONGEST = 1 << 20  # tokens; nothing is cut while lengths are measured
SHARE = 0.99  # of the pairs that data.max_length keeps whole
ROUND = 64  # tokens, that data.max_length is a multiple of
QUESTIONS = {
    "policy.path": "Model, a folder or Hub name",
    "data.train": "Preference pairs, a file, folder, pattern, URI or Hub name",
    "data.eval": "Held-out pairs, a file or the fraction of prompts to hold out",
}
BUDGETS = [1 << power for power in range(14, 8, -1)]  # of train.micro_batch_tokens


def init(given: argparse.Namespace) -> int:
    """Write a configuration; returns the exit status.

    Raises:
        ConfigError: the file is there already, or something is missing or wrong in what was given.
    """
    out = Path(given.config)
    if out.exists():
        raise ConfigError(f"{out} is there already. Name another file, or remove it.")
    recipe = Recipe({"policy.kind": "huggingface"}, {}, [], [])
    if given.source is not None:
        fields = fields_of(given.source)
        recipe = translate(Config, fields, given.program or program_of(fields), given.devices)
    settings = {"run.name": name_of(out), **recipe.settings, **_given(given, out)}
    if sys.stdin.isatty():
        settings |= _answers(settings, out)
    for key, option in (("policy.path", "--model"), ("data.train", "--data")):
        if not settings.get(key):
            raise ConfigError(f"{key} is missing: give it with {option}")
    looked = _written_and_looked_at(out, settings, recipe, given.source is not None)
    print(f"{out} is written. Next: ray-align doctor {out}, then ray-align run {out} --trial")
    for line in [*looked, *recipe.remarks]:
        print(f"  {line}")
    for field, why in recipe.left.items():
        print(f"  not taken over: {field}: {why}")
    return 0


def name_of(out: Path) -> str:
    """A name for the run, after its file."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", out.stem).lstrip(".-_") or "run"


def _answers(settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """Ask for what is missing; held-out pairs only where something else had to be asked for, too."""
    from rich.prompt import Prompt

    missing = {key: text for key, text in QUESTIONS.items() if not settings.get(key)}
    if not missing.keys() - {"data.eval"}:
        return {}
    defaults = {"data.eval": "0.05"}
    said = {key: Prompt.ask(text, default=defaults.get(key, "")).strip() for key, text in missing.items()}
    return {key: _from(out, text) for key, text in said.items() if text}


def _given(given: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Settings of the command line. A local path below the file's folder becomes relative to it, as paths in it are."""
    named = {"policy.path": given.model, "data.train": given.data, "data.eval": given.eval}
    settings: dict[str, Any] = {key: _from(out, value) for key, value in named.items() if value is not None}
    for override in overrides_of(Config, given.overrides):
        settings[".".join([override.section, override.field, *override.inside])] = override.value
    return settings


def _from(out: Path, value: str) -> Any:
    try:
        return float(value)  # data.eval may be a fraction
    except ValueError:
        beside, place = out.resolve().parent, Path(value).resolve()
        if not place.exists():
            return value
        return str(place.relative_to(beside)) if beside in place.parents else str(place)


def _written_and_looked_at(out: Path, settings: dict[str, Any], recipe: Recipe, of_recipe: bool) -> list[str]:
    """Write the file, look at what it names, and write it again with what was seen; returns what is to be said."""
    out.write_text(text_of(settings, recipe), encoding="utf-8")
    try:
        config = Config.load(str(out))
        found, said = seen(config, settings, of_recipe)
        settings |= found
        out.write_text(text_of(settings, recipe), encoding="utf-8")
        Config.load(str(out))
    except InputError:
        out.unlink()
        raise
    return said


# What data, model and machine are


class Lengths(NamedTuple):
    """Tokens of the first pairs, one entry a pair."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def sums(self) -> list[int]:
        """Tokens of each pair's longer side with its prompt, sorted."""
        return sorted(p + max(c, r) for p, c, r in zip(*self, strict=True))


def seen(config: Config, settings: dict[str, Any], of_recipe: bool) -> tuple[dict[str, Any], list[str]]:
    """Settings that follow from the data, the model and the machine, and sentences that say why.

    Args:
        of_recipe: whether a recipe says how strings are read.
    """
    try:
        lengths, past, said = _lengths(config)
        shape, positions = _model(config)
    except InputError as error:
        return {}, [f"the data or the model could not be looked at, so lengths are the defaults: {first_line(error)}"]
    found: dict[str, Any] = {}
    if past and not of_recipe and "data.strings" not in settings:
        found["data.strings"] = "messages"
        said.append('data.strings = "messages": the rows are strings, and the model has a chat template')
    if lengths.prompt and "data.max_length" not in settings:
        wanted = lengths.sums[min(len(lengths.sums) - 1, int(SHARE * len(lengths.sums)))]
        found["data.max_length"] = min(-(-wanted // ROUND) * ROUND, positions or LONGEST)
        said.append(f"data.max_length = {found['data.max_length']}: {SHARE:.0%} of these pairs are whole within it")
    if lengths.prompt and shape is not None and "train.micro_batch_tokens" not in settings:
        found |= _budget(config, shape, lengths, found.get("data.max_length", config.data.max_length), said)
    return found, said


def _lengths(config: Config) -> tuple[Lengths, bool, list[str]]:
    """The lengths of the first pairs, and whether they are strings that go past a chat template."""
    from dpo.text.pairs import PreferencePair
    from dpo.text.rejection import Rejection
    from dpo.text.tokenize import Rules, tokenize_pairs
    from pipeline.data.sources import data_files
    from pipeline.data.tokenizer import open_tokenizer
    from pipeline.stages.written import pairs_in

    tokenizer = open_tokenizer(config)
    files = data_files(config.data, Path(config.run.workspace))
    rows = [pairs for file in files[:4] for _, pairs in islice(pairs_in(file, config.data), ROWS)]
    read = [pair for pairs in rows for pair in pairs]
    bad = [pair for pair in read if isinstance(pair, Rejection)]
    pairs = [pair for pair in read if isinstance(pair, PreferencePair)]
    if not pairs:
        why = bad[0].reason if bad else "the files are empty"
        raise InputError(f"no row of data.train can be read as a pair: {why}. data.columns names your columns.")
    rules = Rules(LONGEST, "keep_start", template_options=config.tokenizer.template_options)
    encoded = [pair for pair in tokenize_pairs(tokenizer, pairs, rules) if not isinstance(pair, Rejection)]
    sizes = [(len(pair.prompt_ids), len(pair.chosen_ids), len(pair.rejected_ids)) for pair in encoded]
    lengths = Lengths(*([size[side] for size in sizes] for side in range(3)))
    past = tokenizer.chat_template is not None and not any(pair.chat for pair in pairs)
    return lengths, past, [f"{len(read)} rows were looked at, {len(bad)} of them cannot be used"]


def _model(config: Config) -> tuple[Any, int | None]:
    """The sizes of the policy, and how many positions it has; None where that is unknown."""
    from dpo.lm.model_config import Shape, position_limit, read_config
    from pipeline.store.hub import model_folder

    if config.policy.path is None:
        return None, None
    described = read_config(model_folder(config.policy.path, "policy.path"))
    try:
        return Shape.of(described), position_limit(described)
    except KeyError:
        return None, position_limit(described)


def _budget(config: Config, shape: Any, lengths: Lengths, max_length: int, said: list[str]) -> dict[str, Any]:
    """The largest micro-batch that this machine's memory holds."""
    from pipeline.cluster.machine import settled
    from pipeline.models.cards import local_card
    from pipeline.models.room import Training, memory_here

    here = settled(config)
    card = local_card() if here.cluster.gpus_per_worker else None
    memory = card.memory if card is not None else memory_here(here.cluster.most_workers)
    cut = [[min(n, max_length) for n in side] for side in lengths]
    training = Training.of(here, shape, *([n for n in side for _ in range(64)] for side in cut))
    where = str(card) if card is not None else "this machine"
    for checkpointing in (config.train.activation_checkpointing, True):
        fitting = (n for n in BUDGETS if training.fits(memory, budget=n, checkpointing=checkpointing))
        budget = next(fitting, None)
        if budget is not None:
            said.append(f"train.micro_batch_tokens = {budget}: what fits into the memory of {where}")
            more = {"train.activation_checkpointing": True} if checkpointing else {}
            return {"train.micro_batch_tokens": budget, **more}
    said.append(f"the model does not fit into the memory of {where}; ray-align doctor --card NAME looks at another")
    return {}


# The file


def text_of(settings: dict[str, Any], recipe: Recipe) -> str:
    """The configuration as TOML, with what was not taken over as comments."""
    lines = ["# What is left out has its default: ray-align config prints all, ray-align --keys says what each means."]
    for section in Config.model_fields:
        if isinstance(settings.get(section), list):
            for table in settings[section]:
                lines += ["", f"[[{section}]]", *_lines(table.items())]
        fields = {key[len(section) + 1 :]: value for key, value in settings.items() if key.startswith(f"{section}.")}
        if fields:
            lines += ["", f"[{section}]", *_lines(fields.items())]
    lines += ["", *(f"# {remark}" for remark in recipe.remarks)] if recipe.remarks else []
    if recipe.left:
        lines += ["", "# Not taken over:", *(f"#   {field}: {why}" for field, why in recipe.left.items())]
    if recipe.off:
        lines += ["", f"# Off there, and not here: {', '.join(sorted(recipe.off))}"]
    return "\n".join(lines) + "\n"


def _lines(fields: Iterable[tuple[str, Any]]) -> list[str]:
    return [f"{key} = {toml(value)}" for key, value in fields if value is not None]


def toml(value: Any) -> str:
    """One value as TOML."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_name(key)} = {toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _name(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)
