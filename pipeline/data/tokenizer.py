"""[tokenizer] and [data] -> the tokenizer, and the rules by which pairs become token ids."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dpo.lm.whole_folder import file_digest, read_json
from dpo.text.bounds import try_template
from dpo.text.plain import PlainTokenizer, from_values, plain_values
from dpo.text.tokenize import Rules
from dpo.text.tokenizers import BYTES, load_tokenizer
from pipeline.config import Config, XTransformersPolicy
from pipeline.errors import ConfigError
from pipeline.process import Process
from pipeline.store.artifacts import begin, commit, damaged_file, find, fingerprint
from pipeline.store.hub import model_folder

FORMAT_VERSION = 3  # templates are tried
VALUES = "values.json"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack")  # not read for a tokenizer


def open_tokenizer(config: Config) -> PlainTokenizer:
    """The tokenizer that a configuration names, or else its policy's own.

    Transformers reads it once, in a process of its own; its plain values are kept in the user's cache folder.

    Raises:
        InputError: there is none, or it cannot be loaded.
    """
    source = tokenizer_source(config)
    made_of = {
        "stage": "tokenizer",
        "format": FORMAT_VERSION,
        "libraries": {name: version(name) for name in ("transformers", "tokenizers")},
        **tokenizer_contents(config),
    }
    folder = _cache_folder() / fingerprint(made_of)
    found = find(folder, made_of)
    kept = read_json(folder / VALUES) if found is not None and damaged_file(found) is None else None
    if kept is not None:
        return from_values(kept)
    values = Process(read_values, *source).result()
    with suppress(OSError):  # where nothing can be kept, the tokenizer is read again next time
        own = begin(folder)
        (own / VALUES).write_text(json.dumps(values), encoding="utf-8")
        commit(own, folder, made_of, {"tokens": len(from_values(values))})
    return from_values(values)


def tokenizer_contents(config: Config) -> dict[str, Any]:
    """The contents of a tokenizer: the digests of its files, its end token and its template."""
    source = tokenizer_source(config)
    return {
        "files": BYTES if source[0] == BYTES else _digests(Path(source[0])),
        "settings": [source[1], _template_of(source[2])],
    }


def _cache_folder() -> Path:
    """The folder for values that can be read again at any time (the XDG base directory specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ray-align" / "tokenizers"


def tokenizer_source(config: Config) -> tuple[str, str | None, str | None]:
    """The arguments of `load_tokenizer`: "bytes" or a local folder, the end token and the chat template, if set.

    Raises:
        InputError: there is no tokenizer, or the hub does not give it.
    """
    settings, policy = config.tokenizer, config.policy
    path, key = settings.path, "tokenizer.path"
    if path is None:
        key = "policy.path"
        path = BYTES if isinstance(policy, XTransformersPolicy) else policy.path
    if path is None:
        raise ConfigError(
            'tokenizer.path is missing: a policy made from policy.config has none. "bytes" needs no files.'
        )
    local = path if path == BYTES or Path(path).exists() else str(model_folder(path, key))
    return local, settings.eos_token, settings.chat_template


def read_values(path: str, eos_token: str | None, chat_template: str | None) -> dict[str, Any]:
    """The plain values of a tokenizer that transformers loads, once its chat template was tried.

    Call it in a process of its own, since a template may do what no bound inside Python ends.

    Raises:
        TokenizerError: the template cannot be read, or renders not even two short messages within its bounds.
    """
    tokenizer = load_tokenizer(path, eos_token, chat_template)
    if tokenizer.chat_template is not None:
        try_template(tokenizer)
    return plain_values(tokenizer)


def save_tokenizer(folder: str, source: Any) -> None:
    """Write the tokenizer of a source, as `tokenizer_source` gave it, into a folder as transformers does."""
    load_tokenizer(*source).save_pretrained(folder)


def _digests(folder: Path) -> list[list[str]]:
    """The files that a tokenizer may be read from; they are small."""
    found = folder.iterdir() if folder.is_dir() else [folder]
    files = sorted(path for path in found if path.is_file() and path.suffix not in WEIGHTS)
    return [[path.name, file_digest(path)] for path in files if not path.name.endswith(".index.json")]


def _template_of(chat_template: str | None) -> str | None:
    """A chat template, and the digest of its file where it is one."""
    if chat_template is None or "{" in chat_template or not Path(chat_template).is_file():
        return chat_template
    return file_digest(Path(chat_template))


def rules(config: Config) -> Rules:
    """The rules by which pairs become token ids."""
    data = config.data
    return Rules(
        data.max_length,
        data.truncation,
        data.max_prompt_length,
        data.max_completion_length,
        config.tokenizer.template_options,
    )


def pad_id(tokenizer: Any) -> int:
    """The id to pad with. Any will do: what stands on the right of a sequence is never seen."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
