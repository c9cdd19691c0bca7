"""The systems that are measured. Each runs in a process of its own and makes a step when it is told to.

A contestant is a generator: it sets itself up, yields once, and from then on makes one optimizer step for every
`next`, yielding the loss. Who asks decides whose turn it is, so that all of them meet the same noise.
"""

from __future__ import annotations

import resource
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any

import torch

from dpo.lm.adapter_files import ALONE, Worn
from dpo.lm.batch import SequenceBatch, collate, collate_shared
from dpo.lm.head import Logps, target_logps
from dpo.lm.logprobs import LogprobModel
from dpo.lm.models import freeze, load_model
from dpo.step import preference_step
from dpo.terms import Term
from examples.benchmarks.workload import Pair
from pipeline.worker.plan import plan_step

BETA, LEARNING_RATE = 0.1, 1e-6
MIXTURE = (Term("sigmoid", {"beta": BETA}),)


@dataclass(frozen=True)
class Task:
    """The work, the same for every contestant."""

    model: Path
    steps: list[list[Pair]]  # the pairs of each optimizer step
    vocabulary: int
    dtype: str
    threads: int
    device: str
    adapter: Path | None = None  # of those that train one


@dataclass(frozen=True)
class Ours:
    """A rung of the ladder."""

    layout: str = "shared"  # or "padded", "unpadded"
    scored_only: bool = True
    budget: int | None = None  # tokens a micro-batch; None: the whole step at once
    cached: bool = True
    checkpointing: bool = False
    adapted: bool = False  # trains the task's adapter alone, which changes nothing before its first step

    def run(self, task: Task) -> Iterator[float]:
        dtype, device = getattr(torch, task.dtype), torch.device(task.device)
        worn = Worn(str(task.adapter)) if self.adapted else ALONE
        policy = LogprobModel(load_model(task.model, dtype, worn=worn)).to(device).train()
        if self.checkpointing:
            policy.model.checkpoint_activations()
        reference: LogprobModel | None = LogprobModel(freeze(load_model(task.model, dtype))).to(device)
        cache = self._score(reference, task) if self.cached else {}
        if self.cached:
            reference = None
        trained = [p for p in policy.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
        yield 0.0
        for number, pairs in enumerate(task.steps):
            total = 0.0
            for indices in self._plan(pairs):
                batch = self._collate([pairs[i] for i in indices]).to(device)
                logps = self._logps(policy, batch)
                if reference is None:
                    theirs = batch.flat([cache[number, side, i] for side in (0, 1) for i in indices])
                else:
                    with torch.no_grad():
                        theirs = self._logps(reference, batch).logps
                loss = preference_step(batch, logps, theirs, MIXTURE).loss / len(pairs)
                loss.backward()
                total += loss.item()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            yield total

    def _score(self, reference: LogprobModel, task: Task) -> dict[tuple[int, int, int], Any]:
        found = {}
        with torch.no_grad():
            for number, pairs in enumerate(task.steps):
                for i, pair in enumerate(pairs):
                    batch = collate_shared(pair.sequences(), 0).to(torch.device(task.device))
                    values = reference(batch).logps.cpu().numpy()
                    cut = int(batch.counts[0])
                    found[number, 0, i], found[number, 1, i] = values[:cut], values[cut:]
        return found

    def _plan(self, pairs: list[Pair]) -> list[list[int]]:
        if self.budget is None:
            return [list(range(len(pairs)))]
        costs = [len(p.prompt) + len(p.chosen) + len(p.rejected) for p in pairs]
        return plan_step(costs, 1, self.budget)[0]

    def _collate(self, pairs: list[Pair]) -> SequenceBatch:
        sequences = [p.sequences()[side] for side in (0, 1) for p in pairs]
        if self.layout == "padded":
            return collate(sequences, 0)
        return collate_shared(sequences, 0, labels=None if self.layout == "shared" else range(len(sequences)))

    def _logps(self, model: LogprobModel, batch: SequenceBatch) -> Logps:
        if self.scored_only:
            return model(batch)
        logits = model.model.network.get_output_embeddings()(model.model.hidden(batch)).flatten(0, 1)
        return Logps(target_logps(logits[batch.sources], batch.targets).logps[batch.scored])


@dataclass(frozen=True)
class Trl:
    """TRL's DPOTrainer on the same token ids, in the same order."""

    micro_batch: int  # pairs
    defaults: bool = False  # an online reference and gradient checkpointing, as TRL ships
    adapted: bool = False  # trains the task's adapter alone

    def run(self, task: Task) -> Iterator[float]:
        go: Queue[None] = Queue()
        done: Queue[float] = Queue()
        trainer = self.trainer(task, go, done)
        threading.Thread(target=trainer.train, daemon=True).start()
        yield 0.0
        for _ in task.steps:
            go.put(None)
            yield done.get()

    def trainer(self, task: Task, go: Any, done: Any) -> Any:
        """A DPOTrainer that waits for `go` before each step and says `done` after it."""
        import datasets
        import transformers
        import trl

        class Turns(transformers.TrainerCallback):
            """Waits for its turn before each optimizer step."""

            def on_step_begin(self, *_: Any, **__: Any) -> None:
                go.get()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                done.put(0.0)

        class OnGivenTokens(trl.DPOTrainer):
            """Takes rows that are token ids already."""

            def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
                return dataset

        rows = [
            {"prompt_ids": p.prompt, "chosen_ids": p.chosen, "rejected_ids": p.rejected}
            for pairs in task.steps
            for p in pairs
        ]
        batch = len(task.steps[0])
        transformers.utils.logging.set_verbosity_error()
        datasets.disable_progress_bars()
        settings: dict[str, Any] = (
            {} if self.defaults else {"precompute_ref_log_probs": True, "gradient_checkpointing": False}
        )
        arguments = trl.DPOConfig(
            output_dir=str(Path(tempfile.gettempdir()) / "trl"),  # in which it writes nothing
            per_device_train_batch_size=self.micro_batch,
            gradient_accumulation_steps=batch // self.micro_batch,
            train_sampling_strategy="sequential",
            max_steps=len(task.steps),
            max_length=None,
            learning_rate=LEARNING_RATE,
            beta=BETA,
            bf16=task.dtype == "bfloat16",
            use_cpu=task.device == "cpu",
            report_to="none",
            save_strategy="no",
            logging_steps=10**6,
            disable_tqdm=True,
            **settings,
        )
        network = transformers.AutoModelForCausalLM.from_pretrained(task.model, dtype=getattr(torch, task.dtype))
        if self.adapted:
            import peft

            network = peft.PeftModel.from_pretrained(network, str(task.adapter), is_trainable=True)
        return OnGivenTokens(
            model=network,
            args=arguments,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=transformers.AutoTokenizer.from_pretrained(task.model),
            callbacks=[Turns()],
        )


def serve(contestant: Ours | Trl, task: Task, pipe: Any) -> None:
    """The process of one contestant: for every word on the pipe one step, answered with (seconds, peak bytes)."""
    torch.set_num_threads(task.threads)
    steps = contestant.run(task)
    next(steps)
    pipe.send((0.0, _peak(task)))
    while pipe.recv() == "step":
        began = _now(task)
        next(steps)
        pipe.send((_now(task) - began, _peak(task)))


def _now(task: Task) -> float:
    """Seconds, with nothing left to do on the GPU."""
    if task.device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def _peak(task: Task) -> int:
    if task.device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return torch.cuda.max_memory_allocated()
