"""The data of a recipe of another program -> [data]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NAMES = ("dataset_name", "dataset", "datasets", "train_file", "dataset_path")
COLUMNS = {"prompt_key": "prompt", "chosen_key": "chosen", "rejected_key": "rejected", "prompt_column": "prompt"}
COLUMNS |= {"chosen_column": "chosen", "rejected_column": "rejected"}
OF_A_SOURCE = {"path", "split", "name", "data_files"}


def data_of(given: Mapping[str, Any], settings: dict[str, Any], remarks: list[str]) -> set[str]:
    """Fill in the sources, the held-out share and the columns; returns the words that were dealt with."""
    taken = set()
    for word in NAMES:
        if given.get(word):
            sources = _sources(given[word], given, remarks)
            settings["data.train"] = sources[0] if len(sources) == 1 else sources
            taken.add(word)
    taken |= {"dataset_train_split", "dataset_config"} & given.keys() if taken else set()
    share = next((word for word in ("val_size", "val_set_size") if isinstance(given.get(word), int | float)), None)
    if share is not None and 0 <= given[share] < 1:
        settings |= {"data.eval": float(given[share])} if given[share] > 0 else {}
        taken.add(share)
    evaluates = given.get("eval_strategy", "no") not in ("no", False, None)
    if evaluates and given.get("dataset_name") and "data.eval" not in settings:
        settings["data.eval"] = {"path": given["dataset_name"], "split": given.get("dataset_test_split", "test")}
        taken |= {"dataset_test_split"} & given.keys()
    if evaluates and isinstance(given.get("eval_steps"), int) and "data.eval" in settings:
        settings["evaluate.every_steps"] = given["eval_steps"]
        taken |= {"eval_steps", "eval_strategy"} & given.keys()
    columns = {ours: given[word] for word, ours in COLUMNS.items() if given.get(word) not in (None, ours)}
    settings |= {"data.columns": columns} if columns else {}
    return taken | (COLUMNS.keys() & given.keys())


def _sources(value: Any, given: Mapping[str, Any], remarks: list[str]) -> list[Any]:
    """The sources of a name, of several with commas between, or of a list of tables."""
    if isinstance(value, list):
        return [_source(entry, remarks) for entry in value]
    names = [name.strip() for name in str(value).split(",")]
    more = {"split": given.get("dataset_train_split"), "name": given.get("dataset_config")}
    more = {key: text for key, text in more.items() if text and text != "train"}
    if any("/" not in name and "." not in name for name in names):
        remarks.append("data.train: a name without a slash is one of a dataset_info.json; give its file or Hub name")
    return [{"path": name, **more} if more else name for name in names]


def _source(entry: Any, remarks: list[str]) -> Any:
    """One table of Axolotl's `datasets`."""
    if not isinstance(entry, dict):
        return entry
    files = entry.get("data_files")
    path = files if isinstance(files, str) else files[0] if files else entry.get("path", "")
    kept = {"path": path, **{key: entry[key] for key in ("split", "name") if entry.get(key) not in (None, "train")}}
    columns = {
        ours: entry[theirs]
        for theirs, ours in (("field_chosen", "chosen"), ("field_rejected", "rejected"), ("field_messages", "prompt"))
        if entry.get(theirs)
    }
    kept |= {"columns": columns} if columns else {}
    dropped = sorted(entry.keys() - OF_A_SOURCE - {"field_chosen", "field_rejected", "field_messages"})
    if dropped:
        remarks.append(f"datasets {path}: {', '.join(dropped)} not taken over; the shape of a row is recognized")
    return kept if len(kept) > 1 else path
