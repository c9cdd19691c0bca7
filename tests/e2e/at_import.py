"""A change of one module of ours in every process of a run, for tests of what cannot be brought about from outside."""

from __future__ import annotations

from pathlib import Path

# Python reads it at the start of every process.
PROGRAM = """
import importlib.util, sys

class Finder:
    def find_spec(self, name, path, target=None):
        if name != {module!r}:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            change(module)

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


def write_change(folder: Path, module: str, change: str) -> None:
    """Write a `sitecustomize.py`. `change`: a program with a function `change(module)`, called after the import."""
    program = PROGRAM.replace("{module!r}", repr(module))
    (folder / "sitecustomize.py").write_text(program + change, encoding="utf-8")
