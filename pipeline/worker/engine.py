"""DeepSpeed around one rank's share of the policy: building, stepping, checkpoints, whole weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dpo.lm.batch import SequenceBatch
from dpo.lm.head import Logps
from dpo.lm.logprobs import LogprobModel, Way
from dpo.lm.model_config import is_x_transformers, read_config, vocabulary_size
from dpo.lm.models import load_model, model_class, why_unshared
from dpo.lm.modes import evaluating
from dpo.lm.sequences import TokenSequence
from dpo.lm.trial import fastest_way, try_ways
from dpo.lm.weights import canonical_tensors, partitioned, whole_tensors
from pipeline.errors import RunError
from pipeline.worker.checkpoints import TAG, own_counts
from pipeline.worker.job import Job
from pipeline.worker.linear import fuse_bias
from pipeline.worker.rates import groups_of
from pipeline.worker.saving import Copies, CopyingEngine, Saving, optimized_apart, trained_alone, unwritten
from pipeline.worker.zero import DeepSpeedZeroOptimizer, TorchCheckpointEngine, compile_nothing, deepspeed, import_muon


class Update(NamedTuple):
    """The outcome of an optimizer step."""

    norm: float | Tensor  # global, of the gradients before clipping; reading it waits for the device
    applied: bool  # False: the gradients were not finite, and the weights are as they were


class Engine:
    """One rank of the trained policy. Every method is called by all ranks at the same point."""

    def __init__(self, job: Job, device: torch.device, universal: bool = False):
        """Load the job's model and wrap it. `universal`: a checkpoint in that form is going to be loaded."""
        config, folder = job.deepspeed, Path(job.model)
        if universal:
            config = config | {"checkpoint": {"load_universal": True}}
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        if device.type == "cpu":
            compile_nothing()
        ours = str(device) if device.index is not None else device.type
        accelerator: Any = deepspeed.accelerator.get_accelerator()
        taken = accelerator.device_name(device.index)
        assert taken == ours, f"DeepSpeed computes on {taken}, this worker on {ours}"  # see `settle`
        self.device = device
        self.stage: int = config["zero_optimization"]["stage"]
        self.offloaded = "offload_optimizer" in config["zero_optimization"]
        described = read_config(folder)
        model_class(described)  # imported before ZeRO-3 changes how tensors are made
        with _sharded_building(folder, config):
            model = LogprobModel(load_model(folder, getattr(torch, job.dtype), _gathered, job.worn))
        self.adapted = model.model.adapted  # an adapter, which alone is trained and written
        if self.adapted is None:
            model.model.refuse_unwritable()
        else:
            model.register_state_dict_post_hook(trained_alone)
        self.vocabulary = vocabulary_size(described) or 2
        against = why_unshared(described) if job.may_share else "train.share_prompts = false"
        place(model, device)
        # Before DeepSpeed's hooks, which gather partitioned weights in their own dtype.
        trial = try_ways(model.eval(), described, self.vocabulary, against is None, device, self._agreed, _all_gathered)
        if job.activation_checkpointing:
            model.model.checkpoint_activations()
        import_muon()
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        self.engine: Any
        groups, self.rates = groups_of(model, self.trainable, job.second_rate)
        self.engine, *_ = deepspeed.initialize(
            model=model, config=config, optimizer=torch.optim.AdamW(groups, fused=True, **job.adamw)
        )
        with_masters = isinstance(self.engine.optimizer, DeepSpeedZeroOptimizer)  # at stages 1 and 2
        if with_masters:
            # It reads all gradients and waits for the device to find infinities that their norm shows as well.
            self.engine.optimizer.check_overflow = _nothing
        self.masters_alone = with_masters and job.dtype == "float32"  # a checkpoint has the weights as masters only
        if self.masters_alone:
            model.register_state_dict_post_hook(optimized_apart)
        self.pad_id = job.pad_id
        self.row_each: bool = model.model.row_each
        # Policy and reference are one function: what acts in training alone (dropout, jitter, sampling) never acts.
        self.engine.eval()
        if job.activation_checkpointing:
            model.model.recompute_in_evaluation()
        chosen = fastest_way(self.engine.module, trial, self.vocabulary, against is None, device, self._agreed)
        model.way = chosen.way
        self.unshared = against or chosen.unshared  # why every sequence repeats its prompt; None: prompts are shared

    def _agreed(self, answer: bool) -> bool:
        """Whether every rank says yes."""
        votes = torch.tensor(int(answer), device=self.device)
        dist.all_reduce(votes, dist.ReduceOp.MIN)
        return bool(votes)

    @property
    def adapter_parameters(self) -> float | None:
        """The number of an adapter's parameters; None: all weights are trained."""
        return None if self.adapted is None else float(sum(getattr(p, "ds_numel", p.numel()) for p in self.trainable))

    @property
    def way(self) -> Way:
        return self.engine.module.way

    def collate(self, sequences: list[TokenSequence], pairs: int) -> SequenceBatch:
        """Lay out a micro-batch of so many pairs on this rank's device; any thread may ask for it.

        Where a prompt's row is padded, pairs keep to their own rows: merged, a row might be longer than planned.
        """
        labels = [i % pairs for i in range(len(sequences))] if self.row_each else None
        return self.engine.module.collate(sequences, self.pad_id, labels).to(self.device)

    def logps(self, batch: SequenceBatch, agreement: bool) -> Logps:
        """[S] log-probs of a micro-batch's scored tokens."""
        return self.engine(batch, agreement)

    def answers(self, prompts: list[list[int]], max_new_tokens: int, eos_id: int) -> list[list[int]]:
        """Greedy answers to prompts of this rank's own, as many as every other rank has.

        All in evaluation mode: layers that recompute activations are in training mode otherwise, where the library's
        versions differ in whether they keep the keys and values of earlier tokens.
        """
        model = self.engine.module.model
        agreed = self._agreed if self.stage == 3 else None  # parameters are gathered by all ranks at once
        with evaluating(model):
            return model.continuations(prompts, max_new_tokens, eos_id, self.pad_id, agreed=agreed)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Accumulate gradients. `last` marks the micro-batch that ends an optimizer step.

        DeepSpeed averages gradients over ranks; the caller scales the loss by the world size to get a sum.
        """
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> Update:
        """Update the weights. DeepSpeed leaves a step out, on all ranks, where a gradient is not finite.

        At stage 0 it leaves nothing out; such a step is not begun there.
        """
        for group, rate in zip(self.engine.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = learning_rate * rate
        if self.stage == 0:
            # In float32 DeepSpeed keeps no norm; every rank holds the whole gradient.
            norm = float(torch.nn.utils.get_total_norm([p.grad for p in self.trainable if p.grad is not None]))
            if not math.isfinite(norm):
                return Update(norm, applied=False)
            self.engine.step()
            return Update(norm, applied=True)
        skipped = self.engine.skipped_steps
        self.engine.step()
        return Update(self.engine.get_global_grad_norm(), self.engine.skipped_steps == skipped)

    def all_finite(self) -> bool:
        """Whether all weights are finite, as all ranks find. Each looks at those that it holds."""
        votes = torch.stack([torch.isfinite(_held(p)).all() for p in self.trainable]).all().to(torch.int32)
        dist.all_reduce(votes, dist.ReduceOp.MIN)
        return bool(votes)

    def room_for_update(self) -> Tensor:
        """As much memory as the first update takes and keeps on this device, beside that of forward and backward.

        Two float32 moments of Adam for each parameter of this rank's share, and at stage 2 a copy of its gradients.
        """
        moments = 0 if self.engine.basic_optimizer.state else 8  # they are there after a checkpoint was loaded
        parameters = sum(getattr(p, "ds_numel", p.numel()) for p in self.trainable)
        share = parameters if self.stage == 0 else -(-parameters // dist.get_world_size())
        bytes_each = 0 if self.offloaded else moments + (4 if self.stage == 2 else 0)
        return torch.empty(share * bytes_each, dtype=torch.uint8, device=self.device)

    def save(self, folder: Path) -> Saving:
        """Copy this rank's shards of weights and optimizer, and begin to write them.

        Raises:
            RunError: they could not be written.
        """
        copies: Copies = []
        # Another engine is there where the user's ds_config.json has a checkpoint writer; it writes by itself.
        if isinstance(self.engine.checkpoint_engine, TorchCheckpointEngine):
            self.engine.checkpoint_engine = CopyingEngine(self.engine._config)
            copies = self.engine.checkpoint_engine.copies
        try:
            frozen = {"exclude_frozen_parameters": True} if self.adapted is not None else {}
            self.engine.save_checkpoint(str(folder), tag=TAG, save_latest=False, **frozen)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as one of either
            raise RunError(unwritten(folder)) from error
        return Saving(folder, copies)

    def load(self, folder: Path) -> None:
        """Read this rank's shards; the world size must be that of the checkpoint, unless it is a universal one.

        Of a policy with an adapter it holds the trained weights alone.
        """
        strict = self.adapted is None and not self.masters_alone
        path, _ = self.engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=strict)
        if path is None:
            raise RuntimeError(f"DeepSpeed found no checkpoint in {folder}")
        if self.masters_alone:
            self.engine.optimizer.update_lp_params()
        own_counts(self.engine.basic_optimizer.state, self.engine.global_steps - self.engine.skipped_steps)

    def whole_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The policy's weights, or its adapter's, under the names of its network, gathered one at a time."""
        adapted = self.adapted
        named = canonical_tensors(self.engine.module.model.network) if adapted is None else adapted.trained()
        return whole_tensors(named, lambda tensor: deepspeed.zero.GatheredParameters([tensor]))

    def on_disk(self, tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The whole tensors as they stand in the files of a model folder."""
        return self.engine.module.model.on_disk(tensors)

    @contextmanager
    def adapter_off(self) -> Iterator[Callable[[bool], None]]:
        """Yield a switch that turns the adapter off (False) and on again; at the end it is on and trained."""
        assert self.adapted is not None
        try:
            yield self.adapted.switch
        finally:
            self.adapted.switch(True)
            for parameter in self.trainable:
                parameter.requires_grad_(True)

    def close(self) -> None:
        self.engine.destroy()


def _nothing(partition_gradients: bool = True) -> None:
    """The search for infinities that the norm makes superfluous."""


def _gathered(tensor: Tensor) -> AbstractContextManager[object]:
    """A context in which a parameter is whole; what the first rank wrote into it is shared out at the end."""
    if not partitioned(tensor):
        return nullcontext()
    return deepspeed.zero.GatheredParameters([tensor], modifier_rank=0)


def _all_gathered(tensors: list[Tensor]) -> AbstractContextManager[object]:
    """A context in which partitioned parameters are whole."""
    return deepspeed.zero.GatheredParameters(tensors) if tensors else nullcontext()


def place(model: nn.Module, device: torch.device) -> None:
    """Move a model to its device; partitioned parameters come there when they are gathered.

    Buffers are moved at every stage: building under ZeRO-3 places only what is made by torch's own names.
    """
    for parameter in model.parameters():
        if not partitioned(parameter):
            parameter.data = parameter.data.to(device)
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device))


@contextmanager
def _sharded_building(folder: Path, config: dict[str, Any]) -> Iterator[None]:
    """Under ZeRO-3 parameters are partitioned as they are built, so that no rank ever holds the whole model."""
    if config["zero_optimization"]["stage"] < 3:
        yield
        return
    fuse_bias()
    if is_x_transformers(read_config(folder)):
        context: AbstractContextManager[Any] = deepspeed.zero.Init(config_dict_or_path=config)
        with context:
            yield
    else:
        from transformers.integrations import HfDeepSpeedConfig

        # transformers' own loader partitions while this object is alive, and only then.
        kept = HfDeepSpeedConfig(config)
        yield
        del kept


def _held(parameter: nn.Parameter) -> Tensor:
    """The weights that this rank holds of a parameter: all of them, or its share under ZeRO-3.

    Shares are of one length, and what the last ones have beyond the parameter's end was never written.
    """
    share = getattr(parameter, "ds_tensor", None)
    if share is None:
        return parameter.detach()
    left = parameter.ds_numel - dist.get_rank() * share.numel()  # type: ignore[operator]
    return share.detach()[: max(0, left)]
