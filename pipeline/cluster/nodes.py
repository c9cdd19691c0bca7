"""Before the first stage, a look at every node of a cluster: what would only fail there, hours later.

The driver leaves a file in the run's folder and in the workspace; a node that does not see it has folders of its own.
"""

from __future__ import annotations

import os
import platform
import uuid
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster.capacity import node_name
from pipeline.data.files import is_uri, open_raw
from pipeline.errors import InputError

PACKAGES = ("ray-align", "ray", "torch", "deepspeed", "transformers", "x-transformers", "pyarrow", "safetensors")
SECONDS = 120  # for all nodes to answer; a new process takes some to start


def check_nodes(folders: list[Path], files: list[str]) -> None:
    """Compare every node with this one.

    Args:
        folders: that all nodes must share and write to; the run's own and the workspace.
        files: that all nodes must read; paths or URIs.

    Raises:
        InputError: names the nodes, what differs and the fix.
    """
    token = f".seen.{uuid.uuid4().hex[:8]}"
    probes = [folder / token for folder in folders]
    for probe in probes:
        probe.touch()
    try:
        answers = _ask([str(probe) for probe in probes], files)
    finally:
        for probe in probes:
            probe.unlink(missing_ok=True)
    here = _look([], [])
    problems = [f"node {name}: {problem}" for name, answer in answers.items() for problem in _problems(answer, here)]
    if problems:
        raise InputError("not every node of the cluster can do the work:\n" + "\n".join(problems))


def _ask(probes: list[str], files: list[str]) -> dict[str, dict[str, Any]]:
    """Each living node's answer, by its address and id."""
    tasks = {}
    for node in ray.nodes():
        if node["Alive"]:
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            name = node_name(node)
            look: Any = ray.remote(_look).options(num_cpus=0, max_retries=0, scheduling_strategy=here)
            tasks[name] = look.remote(probes, files)
    ready, late = ray.wait(list(tasks.values()), num_returns=len(tasks), timeout=SECONDS)
    silent = [name for name, task in tasks.items() if task in late]
    if silent:
        raise InputError(
            f"no answer within {SECONDS} s from node {', '.join(silent)}; is it alive, with room for a task?"
        )
    return {name: ray.get(task) for name, task in tasks.items() if task in ready}


def _look(probes: list[str], files: list[str]) -> dict[str, Any]:
    """The versions that this node has, and the folders and files that it cannot use."""
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "unseen": [str(Path(probe).parent) for probe in probes if not os.path.exists(probe)],
        "unwritable": [folder for folder in {str(Path(p).parent) for p in probes} if not os.access(folder, os.W_OK)],
        "unreadable": [path for path in files if not _readable(path)],
    }


def _readable(path: str) -> bool:
    """On this node, with the credentials that it has."""
    if not is_uri(path):
        return os.access(path, os.R_OK)
    try:
        with open_raw(path) as file:
            return bool(file.read(1))
    except Exception:  # every store's client has errors of its own
        return False


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _problems(answer: dict[str, Any], here: dict[str, Any]) -> list[str]:
    found = [
        f"{name} is {there or 'not installed'}, and {here['versions'][name] or 'not installed'} where the run starts; "
        "install the same"
        for name, there in answer["versions"].items()
        if there != here["versions"][name]
    ]
    for folder in answer["unseen"]:
        found.append(f"does not see this run's {folder}; name a folder that all nodes share (run.dir, run.workspace)")
    found += [f"cannot write to {folder}" for folder in answer["unwritable"] if folder not in answer["unseen"]]
    found += [f"cannot read {path}; put it where all nodes see it" for path in answer["unreadable"]]
    return found
