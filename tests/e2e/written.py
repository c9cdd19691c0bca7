"""Everything that a run wrote, by content: `python -m tests.e2e.written RUN_DIR WORKSPACE` prints a line a file.

    GROUP NAME DIGEST

exact    integers, text and structure: equal on every machine
library  what the versions of other libraries decide, as the form of a tokenizer's file
floats   weights, log-probs, losses, and names that are derived from them: equal on machines that round alike

Names that hang on rounding or on versions (fingerprints, identities of the cache) are in the exact group by what they
are the name of, so that it shows on any machine whether the artifacts are made of one another. A third argument, a
NAME, prints that content itself. Imports nothing of the program, which may be moved under it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from tests.e2e.contents import EVENTS, Content, content_of, digest, divided, norms, table

GROUPS = ("exact", "library", "floats")
KINDS = ("tokens", "models", "sft", "cache")  # of artifacts in a workspace
RAW = {"of workspace/tokens": "library", "name of workspace/models": "exact"}  # groups of names themselves; else floats
FULL, SHORT = 64, 16  # hexadecimal digits of digests
NAME = re.compile(rf"\b[0-9a-f]{{{SHORT}}}(?:[0-9a-f]{{{FULL - SHORT}}})?\b")
FOLDERS = re.compile(r"(?<![\w.])/(?:[^/\s\"']+/)+")  # the beginning of an absolute path
PART = re.compile(r"([0-9a-f]{8})-([0-9a-f]{8})-(\d+)-([0-9a-f]{16})-([0-9a-f]{16})\.parquet")


class Written(NamedTuple):
    """Contents by name, as JSON values, in each group."""

    exact: dict[str, Any]
    library: dict[str, Any]
    floats: dict[str, Any]

    def digests(self) -> dict[str, dict[str, str]]:
        """A digest for each name of each group."""
        return {group: {name: digest(_json(v).encode()) for name, v in self._of(group)} for group in GROUPS}

    def _of(self, group: str) -> list[tuple[str, Any]]:
        return sorted((name, value) for name, value in getattr(self, group).items() if value is not None)


def written(run: Path, workspace: Path) -> Written:
    """The contents of a run's folder and of the workspace that it alone has used."""
    folders = {"run": run, "workspace": workspace, **_artifacts(workspace)}
    files = {_name(path, folders): path for root in (run, workspace) for path in sorted(root.rglob("*")) if _kept(path)}
    manifests = {name: json.loads(path.read_text("utf-8")) for name, path in files.items() if path.name in DESCRIBING}
    names = _names(folders, manifests)
    found = Written({}, {}, {})
    for name, path in files.items():
        _add(found, name, _manifest(path) if path.name == "manifest.json" else content_of(path), names)
    for name, folder in folders.items():
        if name.startswith("workspace/cache/"):
            _add(found, f"{name}/*.parquet", _cache(folder), names)
    for raw, said in names.items():
        group = next((RAW[kind] for kind in RAW if kind in said), "floats")
        getattr(found, group)[said] = raw
    return found


DESCRIBING = ("manifest.json", "identity.json", "digests.json")


def _artifacts(workspace: Path) -> dict[str, Path]:
    """The artifacts of a workspace by names that hang on nothing: numbered as they were made."""
    found = {}
    for kind in KINDS:
        made = [path for path in (workspace / kind).glob("*") if path.is_dir()]
        made.sort(key=lambda path: next(path.glob("[im]*.json")).stat().st_mtime_ns)  # manifest, identity
        found |= {f"workspace/{kind}/{number}": path for number, path in enumerate(made, 1)}
    return found


def _kept(path: Path) -> bool:
    """Whether a file has a content of its own; the parts of a cache are read together."""
    return path.is_file() and not PART.fullmatch(path.name)


def _name(path: Path, folders: dict[str, Path]) -> str:
    """A file's name below the innermost of the folders; TensorBoard puts times and processes into its own."""
    name, folder = max((f for f in folders.items() if f[1] in path.parents), key=lambda f: len(f[1].parts))
    return f"{name}/{path.relative_to(folder).parent / _timeless(path.name)}".replace("/./", "/")


def _timeless(name: str) -> str:
    return re.sub(rf"{re.escape(EVENTS)}.*", f"{EVENTS}*", name)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def fingerprint(made_of: dict[str, Any]) -> str:
    """What made an artifact, as its name: the program's own rule, written down once more."""
    return hashlib.sha256(_json(made_of).encode()).hexdigest()[:SHORT]


def _names(folders: dict[str, Path], manifests: dict[str, Any]) -> dict[str, str]:
    """Fingerprints, identities, folders' names and digests of weights -> what they are the name of."""
    names = {folder.name: f"<name of {name}>" for name, folder in folders.items() if name.count("/") == 2}
    for name, content in manifests.items():
        owner = name.rpartition("/")[0]
        if name.endswith("/manifest.json") and content["made_of"]:
            names.setdefault(content["fingerprint"], f"<fingerprint of {owner}>")
            if "weights" in content["counts"]:
                names[content["counts"]["weights"]] = f"<weights of {owner}>"
    for key, entry in manifests.get("workspace/digests.json", {}).items():
        kind, _, path = key.partition(":")
        if kind == "weights":
            owner = next((name for name, folder in folders.items() if folder.name == Path(path).name), path)
            names[entry["digest"]] = f"<weights of {owner}>"
    return names


def _add(found: Written, name: str, content: Content, names: dict[str, str]) -> None:
    found.exact[name] = _placeless(content.exact, names)
    found.library[name] = _placeless(content.library, names)
    found.floats[name] = content.floats


def _placeless(value: Any, names: dict[str, str]) -> Any:
    """The same without folders of this machine, and with names that hang on other content said in words."""
    if isinstance(value, dict):
        return {_placeless(key, names): _placeless(entry, names) for key, entry in value.items()}
    if isinstance(value, list):
        return [_placeless(entry, names) for entry in value]
    if isinstance(value, str):
        return NAME.sub(lambda match: names.get(match[0], match[0]), FOLDERS.sub(".../", value))
    return value


def _manifest(path: Path) -> Content:
    """What a manifest says, and whether it is true of the files and of its own fingerprint."""
    content = json.loads(path.read_text(encoding="utf-8"))
    made_of, library = content["made_of"], None
    if made_of and fingerprint(made_of) != content["fingerprint"]:
        content["fingerprint"] = "not that of made_of"
    files = {_timeless(name): _as_stated(path.parent / name, entry) for name, entry in content["files"].items()}
    if "tokenizers" in made_of:
        nameless = {key: value for key, value in made_of.items() if key != "name"}
        own = hashlib.sha256(json.dumps(nameless, sort_keys=True).encode()).hexdigest()[:SHORT]
        library = [made_of["tokenizers"], made_of["tokenizer"][0]]
        tokenizer = ["form of the tokenizer", *made_of["tokenizer"][1:]]
        made_of |= {"tokenizers": "version", "tokenizer": tokenizer, "name is its own": own == made_of["name"]}
    exact, floats, _ = divided({**content, "made_of": made_of, "files": files})
    return Content(exact, floats, library)


def _as_stated(path: Path, entry: dict[str, Any]) -> str:
    content = path.read_bytes()
    true = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return "as stated" if true == entry else "not as stated"


def _cache(folder: Path) -> Content:
    """All rows of a cache, sorted by key; and whether folder and parts have the names that their content gives them."""
    parts = sorted(path for path in folder.glob("*.parquet"))
    tables = [pq.read_table(path) for path in parts]
    rows = pa.concat_tables(tables).sort_by("key")
    exact, floats, _ = table(rows)
    true = [path.name == part_name(path, part["key"].to_pylist()) for path, part in zip(parts, tables, strict=True)]
    identity = json.loads((folder / "identity.json").read_text(encoding="utf-8"))
    return Content({**exact, "parts' names": all(true), "identity": folder.name == fingerprint(identity)}, floats)


def part_name(path: Path, keys: list[bytes]) -> str:
    """First and last key, number of rows, digests of keys and of the file."""
    digests = [hashlib.blake2b(content, digest_size=8).hexdigest() for content in (b"".join(keys), path.read_bytes())]
    return "-".join([keys[0][:4].hex(), keys[-1][:4].hex(), str(len(keys)), *digests]) + ".parquet"


def summaries(run: Path, workspace: Path) -> dict[str, Any]:
    """A few values that stand for all the floats, to be compared where bits differ."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    (start,), (warm,) = ((workspace / kind).glob("*/**/model.safetensors") for kind in ("models", "sft"))
    weights = {"start": start, "after sft": warm, "after dpo": run / "weights" / "model.safetensors"}
    values = {name: summary[name] for name in ("loss_first", "loss_last", "eval_accuracy")}
    return {**values, "norms": {name: norms(path) for name, path in weights.items()}}


def main() -> None:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed says on stdout that it looked for another
    run, workspace, *names = sys.argv[1:]
    found = written(Path(run).resolve(), Path(workspace).resolve())
    for group, digests in found.digests().items():
        for name, value in digests.items():
            if not names:
                print(f"{group:8}{name} {value}")
            elif name in names:
                print(json.dumps(getattr(found, group)[name], indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
