"""What a trainer keeps to go on from: a folder that is whole or is refused."""

from __future__ import annotations

import json
import shutil
import zlib
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpo.lm.weights import partitioned
from dpo.lm.whole_folder import describe_all, unlike, write_atomically
from ppo.report import gathered
from ppo.said import warn

MANIFEST = "complete.json"  # written last
HEAD = "v_head."  # in the names of a value head, which no reference is asked for
SAMPLED = 1024  # entries of each of the reference's tensors that tell it from others


class State:
    """What a trainer knows beside weights and optimizer, for accelerate's checkpoints: plain numbers and tensors."""

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        trainer = self.trainer
        _, keys, position, has_gauss, gauss = trainer.updates.order.get_state()
        return {
            "kl": trainer.kl_ctl.state_dict(),
            "running": trainer.running.state_dict(),
            "order": (torch.from_numpy(keys.astype("int64")), position, has_gauss, gauss),
            "step": trainer.current_step,
            "highest_score": trainer.highest_score,
            "lr_scheduler": None if trainer.lr_scheduler is None else trainer.lr_scheduler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        trainer = self.trainer
        trainer.kl_ctl.load_state_dict(state["kl"])
        trainer.running.load_state_dict(state["running"])
        keys, *rest = state["order"]
        trainer.updates.order.set_state(("MT19937", keys.numpy().astype("uint32"), *rest))
        trainer.current_step, trainer.highest_score = state["step"], state["highest_score"]
        if trainer.lr_scheduler is not None and state["lr_scheduler"] is not None:
            trainer.lr_scheduler.load_state_dict(state["lr_scheduler"])


def save(trainer: Any, folder: Path) -> None:
    """Write beside `folder`, and put it in its place once all of it is there. Every rank calls this."""
    accelerator, partial = trainer.accelerator, folder.with_name(f"{folder.name}.partial")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        told = {"files": describe_all(partial, MANIFEST), "made_with": _setting(trainer)}
        write_atomically(partial / MANIFEST, json.dumps(told, indent=1) + "\n")
        old = folder.with_name(f"{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()


def load(trainer: Any, folder: Path) -> None:
    """Look at all of `folder`, then load it. Every rank calls this; the main process looks.

    Raises:
        ValueError: it is not there, not whole, damaged, or of a trainer with another reference, optimizer or number
            of ranks.
    """
    main = trainer.accelerator.is_main_process
    fault, changed = gathered([_looked_at(trainer, folder) if main else (None, [])], trainer.accelerator)[0]
    if fault is not None:
        raise ValueError(fault)
    if changed:
        warn(
            "the run goes on with another configuration than it was saved with; the learning rate of its optimizer and "
            f"its KL coefficient stay as they were saved: {', '.join(changed)}"
        )
    trainer.accelerator.load_state(str(folder))


def _looked_at(trainer: Any, folder: Path) -> tuple[str | None, list[str]]:
    """What speaks against loading a state, None: nothing; and what has changed in the configuration."""
    try:
        told = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        old = folder.with_name(f"{folder.name}.old")
        hint = f" A save was cut off: rename {old}, the state before it." if (old / MANIFEST).is_file() else ""
        return f"{folder} holds no whole state of save_state ({type(error).__name__}).{hint}", []
    path = _unlike(folder, told["files"])
    if path is not None:
        return f"{path} is {'damaged' if path.is_file() else 'missing'}: load another state", []
    then, now = told["made_with"], _setting(trainer)
    other = then["reference"] != now["reference"]
    if other and trainer.ref_model is not None and then["reference"] == sampled_fingerprint(trainer.ref_model):
        then["reference"] = now["reference"]  # as an earlier version told references apart, by their value heads too
    for name, advice in (
        ("reference", "give as ref_model the model that the run began with; a state does not hold it"),
        ("optimizer", "give the same kind of optimizer"),
        ("world_size", "start as many processes"),
    ):
        if then[name] != now[name]:
            return f"{folder} was saved with {name} {then[name]}, and this trainer has {now[name]}: {advice}", []
    changed = [
        f"{key} = {value} (then {then['config'][key]})"
        for key, value in now["config"].items()
        if key in then["config"] and then["config"][key] != value  # an earlier version had fewer keys
    ]
    return None, changed


def _unlike(folder: Path, files: dict[str, Any]) -> Path | None:
    """The first file that is missing or damaged; states of earlier versions have [size, CRC-32] of each."""
    if all(isinstance(entry, dict) for entry in files.values()):
        return unlike(folder, files, digests=True)
    return next((folder / name for name, entry in files.items() if _checksum(folder / name) != entry), None)


def _checksum(path: Path) -> list[int] | None:
    """Size and CRC-32 of a file, None if it is missing."""
    if not path.is_file():
        return None
    size = total = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            size, total = size + len(block), zlib.crc32(block, total)
    return [size, total]


def _setting(trainer: Any) -> dict[str, Any]:
    of_the_place = ("accelerator_kwargs", "model_name", "project_kwargs", "tracker_kwargs")
    return {
        "config": {name: value for name, value in asdict(trainer.config).items() if name not in of_the_place},
        "optimizer": type(trainer.bare_optimizer).__name__,
        "reference": None if trainer.ref_model is None else sampled_fingerprint(trainer.ref_model, but=HEAD),
        "world_size": trainer.accelerator.num_processes,
    }


def sampled_fingerprint(model: torch.nn.Module, but: str | None = None) -> str | None:
    """Tells models apart by some entries of each of their tensors; None where this rank does not hold them whole.

    Args:
        but: tensors with this in their name do not count.
    """
    found = sha256()
    # Under the names of parameters, with which earlier versions told models apart.
    for name, tensor in torch.nn.Module.state_dict(model, keep_vars=True).items():
        if partitioned(tensor):
            return None
        if but is not None and but in name:
            continue
        found.update(f"{name} {tuple(tensor.shape)}".encode())
        found.update(_some(tensor.detach()))
    return found.hexdigest()[:16]


def _some(tensor: Tensor) -> bytes:
    flat = tensor.flatten()
    return flat[:: max(1, len(flat) // SAMPLED)].cpu().contiguous().view(torch.uint8).numpy().tobytes()
