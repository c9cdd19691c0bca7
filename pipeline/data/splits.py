"""Files of a folder -> those of one split, as clones of the Hub's data sets name them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import InputError

HELD_OUT = re.compile(r"(test|validation|valid|val|dev|eval)(?![a-z])")
TRAIN = re.compile(r"train(?![a-z])")
SHARD = re.compile(r"(-\d+-of-\d+(-\w+)?)?(\.\w+)+$")


class Chosen(NamedTuple):
    files: list[str]
    left_out: list[str]  # files of other splits


def of_split(files: list[str], split: str, key: str, path: str) -> Chosen:
    """Choose the files of a split, if their names tell splits: some begin with train, and some with test or the like.

    Args:
        files: of one folder.
        split: a name as in "train_prefs", "train" by default; data.eval then means the other files.
        key: the configuration key that holds the path, for messages.

    Raises:
        InputError: the names tell several splits, and `split` is none of them.
    """
    names = {file: SHARD.sub("", Path(file).name) for file in files}
    train = sorted({name for name in names.values() if TRAIN.match(name)})
    held_out = sorted({name for name in names.values() if HELD_OUT.match(name)})
    if not train or not held_out:
        return Chosen(files, [])
    wanted = held_out if key == "data.eval" and split == "train" else train
    if split in names.values() and (key != "data.eval" or split != "train"):
        wanted = [split]
    if len({re.sub(r"^[a-z]+", "", name) for name in wanted}) > 1 or (split not in ("train", *wanted)):
        known = ", ".join(sorted({*train, *held_out}))
        raise InputError(
            f"{key} = {path!r}: holds several splits ({known}). Name one of them, for example "
            f'{key} = {{ path = "{path}", split = "{wanted[0]}" }}.'
        )
    chosen = [file for file, name in names.items() if name in wanted]
    return Chosen(chosen, [file for file, name in names.items() if name not in wanted])
