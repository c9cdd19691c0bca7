"""How gradients of several micro-batches and ranks become one update of the weights.

Losses are sums over tokens, already divided by the tokens of the whole update. What wraps the model averages gradients
over ranks, so a loss is multiplied by their number first. The end of an update is decided here and nowhere else:
accelerate ends one at the last batch of a data loader as well, and then divides by micro-batches that never came.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, ProjectConfiguration
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from dpo.lm.weights import partitioned, whole_tensors
from ppo.config import PPOConfig


class Engine:
    """The policy of one rank and its optimizer. Every method is called by all ranks at the same point."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        mini_batch_size: int,
        max_grad_norm: float | None,
    ):
        self.accelerator, self.max_grad_norm = accelerator, max_grad_norm
        self.deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
        # A list: an iterator would be empty after the first update, and nothing clipped from then on.
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.model: Any
        if self.deepspeed:
            _fill_deepspeed(accelerator, mini_batch_size, max_grad_norm)
            self.model, self.optimizer = accelerator.prepare(model, optimizer)
        else:
            # Accelerate's optimizer skips updates while `accelerator.sync_gradients` is False: see `window`.
            self.model, self.optimizer = accelerator.prepare_model(model), accelerator.prepare_optimizer(optimizer)
        self.parts, self.last, self.within, self.counted = 1, True, False, False

    @property
    def stage(self) -> int:
        """DeepSpeed's ZeRO stage; 0 without DeepSpeed."""
        return self.accelerator.deepspeed_config["zero_optimization"]["stage"] if self.deepspeed else 0

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradients of a micro-batch; `last` marks the one that ends an update."""
        loss = loss * self.accelerator.num_processes
        if self.deepspeed:
            self.model.set_gradient_accumulation_boundary(last)
            self.model.backward(loss, scale_wrt_gas=False)
            return
        (loss if self.accelerator.scaler is None else self.accelerator.scaler.scale(loss)).backward()

    def accumulating(self, last: bool) -> Any:
        """A context for forward and backward pass: gradients are added up over ranks once an update."""
        if last or self.deepspeed or self.accelerator.num_processes == 1:
            return nullcontext()
        return self.model.no_sync()

    @contextmanager
    def window(self, parts: int, last: bool) -> Iterator[None]:
        """`accumulating` one of the `parts` of an update, for code that leaves accumulation to accelerate.

        Inside, `accelerator.backward` divides by `parts`, and its optimizer updates at the last one only.
        """
        self.parts, self.last, self.within = parts, last, True
        self.accelerator.gradient_accumulation_steps, self.accelerator.sync_gradients = parts, last
        try:
            with self.accumulating(last):
                yield
        finally:
            self.parts, self.last, self.within = 1, True, False
            self.accelerator.gradient_accumulation_steps, self.accelerator.sync_gradients = 1, True

    def step(self) -> None:
        """Clip, update, forget the gradients."""
        if self.deepspeed:
            self.model.step()
            return
        if self.max_grad_norm is not None:
            self.accelerator.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def drop(self) -> None:
        """Forget gradients that came from outside: an update starts from none."""
        self.counted = False
        if not self.deepspeed:
            self.optimizer.zero_grad()

    @property
    def learning_rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def whole_state(self) -> dict[str, Tensor] | None:
        """Under ZeRO-3 the whole weights, gathered one at a time, on the main process; None where they are whole."""
        if self.stage < 3:
            return None
        import deepspeed

        found: dict[str, Tensor] = {}
        module = self.model.module
        named = module.state_dict(keep_vars=True).items()
        for name, tensor in whole_tensors(named, lambda tensor: deepspeed.zero.GatheredParameters([tensor])):
            if self.accelerator.is_main_process:
                found[name] = tensor.cpu().clone()
        return found


def make_accelerator(config: PPOConfig) -> Accelerator:
    """Accelerate's view of this rank, with the tracker and options that the configuration names.

    Raises:
        ValueError: accelerate counts other ranks than the launcher started.
    """
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # else sums depend on a batch's shape
    if config.accelerator_kwargs.get("cpu") or not torch.accelerator.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"  # before DeepSpeed is imported, which would take any GPU that torch sees
    if not torch.accelerator.is_available():
        # Without this, accelerate takes every one of several ranks without a GPU for the only one, and says nothing.
        PartialState(cpu=True)
    project = ProjectConfiguration(**config.project_kwargs)
    accelerator = Accelerator(log_with=config.log_with, project_config=project, **config.accelerator_kwargs)
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        raise ValueError(
            f"WORLD_SIZE is {started}, but accelerate sees {accelerator.num_processes} process(es): nothing would be "
            "shared between them. Look at accelerator_kwargs and at the ACCELERATE_ variables of the environment."
        )
    return accelerator


def _fill_deepspeed(accelerator: Accelerator, mini_batch_size: int, max_grad_norm: float | None) -> None:
    """Say in DeepSpeed's configuration what only the trainer knows.

    Raises:
        ValueError: it clips gradients at another norm than `max_grad_norm`.
    """
    state: Any = accelerator.state
    config = state.deepspeed_plugin.deepspeed_config
    config["train_micro_batch_size_per_gpu"] = mini_batch_size
    config["gradient_accumulation_steps"] = 1
    config.pop("train_batch_size", None)
    clipping = config.get("gradient_clipping", "auto")
    if max_grad_norm is not None and clipping not in ("auto", 0, max_grad_norm):
        raise ValueError(
            f"max_grad_norm = {max_grad_norm}, and gradient_clipping in DeepSpeed's configuration is {clipping}: "
            "set only one of them"
        )
    if clipping == "auto" or max_grad_norm is not None:
        config["gradient_clipping"] = max_grad_norm or 0.0


def forget_dropout_(model: nn.Module) -> None:
    """Set every dropout probability inside layers that compute their activations again to 0, in place.

    Code that sets training mode behind a forward pass would compute others there.
    """
    for layer in model.modules():
        for module in layer.modules() if isinstance(layer, GradientCheckpointingLayer) else ():
            for name, value in list(vars(module).items()):
                if isinstance(value, float) and ("dropout" in name or (name == "p" and isinstance(module, nn.Dropout))):
                    setattr(module, name, 0.0)


def prepare_reference(reference: Any, accelerator: Accelerator) -> Any:
    """Move a frozen model to this rank's device. One that was loaded in parts (ZeRO-3) gets an engine of its own.

    DeepSpeed's configuration is copied: what belongs to training is left out for the reference alone.
    """
    if not any(map(partitioned, reference.parameters())):
        return reference.to(accelerator.device)
    import deepspeed

    kept = ("bf16", "fp16", "zero_optimization", "train_micro_batch_size_per_gpu", "zero_force_ds_cpu_optimizer")
    config = {k: deepcopy(v) for k, v in accelerator.deepspeed_config.items() if k in kept}
    config["zero_optimization"].pop("offload_optimizer", None)
    engine, *_ = deepspeed.initialize(model=reference, config=config)
    engine.eval()
    return engine
