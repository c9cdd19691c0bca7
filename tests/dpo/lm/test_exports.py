"""A trained model of every type is written as the library writes it, and is the same in this version and an older one.

`OLD_TRANSFORMERS_PYTHON` may name a python that has transformers 4.57.3; else one is made in a temporary folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM

from dpo.lm.judge import unlike_start
from dpo.lm.models import load_model
from dpo.lm.weight_files import tensor_headers
from dpo.lm.weights import canonical_tensors, write_weights
from pipeline.models.start import copy_config
from tests.dpo.lm.kinds import NOT_BUILT, TYPES, tiny_folder

OLD = "4.57.3"
IDS = [3 + (7 * i) % 120 for i in range(24)]
BUILT = [kind for kind in TYPES if kind not in NOT_BUILT]


class Exported(NamedTuple):
    """Folders of one model, and its logits [24, V] before and after training."""

    start: Path
    export: Path
    theirs: Path  # the trained model as the library saves it
    before: torch.Tensor
    after: torch.Tensor


@torch.no_grad()
def logits(network) -> torch.Tensor:
    return network.eval()(input_ids=torch.tensor([IDS]), use_cache=False).logits[0].double()


@torch.no_grad()
def exported(folder: Path, kind: str) -> Exported:
    """Move every weight of a tiny model, and write it as training does at its end."""
    start, export, theirs = (folder / name for name in ("start", "export", "theirs"))
    model = load_model(tiny_folder(start, kind), torch.float32)
    before = logits(AutoModelForCausalLM.from_pretrained(start))
    draw = torch.Generator().manual_seed(1)
    for parameter in model.network.parameters():
        if parameter.is_floating_point():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=draw))
    embedding = model.network.get_input_embeddings()
    if embedding.padding_idx is not None:
        embedding.weight[embedding.padding_idx] = 0  # one type of the library sets it so whenever it loads
    export.mkdir()
    write_weights(export, model.on_disk(canonical_tensors(model.network)))
    copy_config(start, export, "float32")
    model.network.save_pretrained(theirs)
    return Exported(start, export, theirs, before, logits(model.network))


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Every type's folders, made when they are first asked for."""
    root, made = tmp_path_factory.mktemp("exports"), {}

    def of(kind: str) -> Exported:
        if kind not in made:
            made[kind] = exported(root / kind, kind)
        return made[kind]

    return root, of


@pytest.mark.long
@pytest.mark.parametrize("kind", BUILT)
def test_it_is_what_the_library_writes(exports, kind):
    found = exports[1](kind)
    assert tensor_headers(found.export) == tensor_headers(found.theirs) == tensor_headers(found.start)
    assert unlike_start(found.export, found.start, "float32") == []
    network, said = AutoModelForCausalLM.from_pretrained(found.export, output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"] and not said["mismatched_keys"]
    assert float((logits(network) - found.after).abs().max()) <= 1e-5
    assert float((found.before - found.after).abs().max()) > 1e-2  # it was trained


@pytest.fixture(scope="module")
def old_python(tmp_path_factory) -> str:
    """A python with the older transformers. One that is made here takes torch from this environment."""
    given = os.environ.get("OLD_TRANSFORMERS_PYTHON")
    if given:
        return given
    folder = tmp_path_factory.mktemp("old")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "-q", f"transformers=={OLD}"], check=True)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    (Path(own) / "torch.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return str(python)


@pytest.mark.long
def test_an_older_version_reads_what_it_can_read_of_the_start(exports, old_python, capsys):
    root, of = exports
    made = {kind: of(kind) for kind in BUILT}
    # Here, the program has no folder of the project on its path, whose packages would import the newer library.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program = Path(__file__).with_name("older.py")
    asked = [old_python, "-c", "import transformers; print(transformers.__version__)"]
    version = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    assert version == OLD
    command = [old_python, str(program), str(root), json.dumps(IDS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    readable, different = [], {}
    for kind, read in found.items():
        if apart(read["start"], made[kind].before) <= 1e-5:
            readable.append(kind)
            if apart(read["export"], made[kind].after) > 1e-5:
                different[kind] = read["export"] if isinstance(read["export"], str) else "other logits"
    with capsys.disabled():
        print(f"\n{len(made)} types written, {len(readable)} read by {version}, {len(different)} of them differently")
    assert len(readable) > 90
    assert different == {}


def apart(read: str | list[list[float]], expected: torch.Tensor) -> float:
    """The largest difference of a logit; infinity where the model could not be read."""
    return (
        float("inf")
        if isinstance(read, str)
        else float((torch.tensor(read, dtype=torch.float64) - expected).abs().max())
    )
