"""One rank of a trial: `python -m tests.ppo.rank_program NAME FOLDER`, with RANK and WORLD_SIZE in the environment.

Every trial is a function of (rank, world) that returns what is to be compared. Rank r of w takes every w-th sample of
a common batch, so that one rank with all of them is what several ranks have to equal. `launch` runs all ranks.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.ppo import tiny

ROOT = Path(__file__).parents[2]
ALL = 8  # samples of all ranks


class Given:
    """Stands in for the trainer's random order: rank r's samples i are the samples w*i + r of the common batch."""

    def __init__(self, orders: list[list[int]], world: int):
        self.orders, self.world = iter(orders * 50), world
        stream = np.random.RandomState(0)  # kept in checkpoints, as the real one is
        self.get_state, self.set_state = stream.get_state, stream.set_state

    def permutation(self, size: int) -> np.ndarray:
        order = next(self.orders)
        if self.world == 1:  # the same samples in the same updates: those of both ranks, one after the other
            order = [2 * i + rank for i in order for rank in (0, 1)]
        assert len(order) == size
        return np.array(order)


def share(items: list[Any], rank: int, world: int) -> list[Any]:
    return items[rank::world]


def steps(trainer: Any, rank: int, world: int, number: int, first: int = 0) -> list[dict[str, Any]]:
    found = []
    for step in range(first, first + number):
        queries, responses, scores = (share(items, rank, world) for items in tiny.batch(ALL, seed=step))
        found.append(trainer.step(queries, responses, scores))
    return found


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    module = trainer.accelerator.unwrap_model(trainer.model)
    whole = trainer.engine.whole_state()
    return {k: v.clone() for k, v in (module.state_dict() if whole is None else whole).items()}


def sizes(world: int, **changes: Any) -> dict[str, Any]:
    """A whole batch of ALL samples, in updates of half of them."""
    return {"batch_size": ALL // world, "mini_batch_size": 4 // world, "ppo_epochs": 3} | changes


def trainer(world: int, **changes: Any) -> Any:
    model = tiny.causal(0)
    # A larger eps: key biases have gradients of 0 up to rounding, of which Adam would make whole steps.
    optimizer = torch.optim.Adam(model.parameters(), lr=changes.get("learning_rate", 1e-2), eps=1e-4)
    made = tiny.trainer(model, optimizer=optimizer, **sizes(world, **changes))
    made.updates.order = Given([[0, 1, 2, 3], [2, 0, 3, 1]], world)
    return made


def outcome(made: Any, stats: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "stats": stats,
        "weights": weights(made),
        "kl_coef": made.kl_ctl.value,
        "running": made.running.state_dict(),
    }


def plain(rank: int, world: int) -> dict[str, Any]:
    made = trainer(world)
    return outcome(made, steps(made, rank, world, 2))


def shaped(rank: int, world: int) -> dict[str, Any]:
    """Scores scaled by their running moments, rewards whitened, several micro-batches an update, clipped gradients."""
    made = trainer(
        world, use_score_scaling=True, use_score_norm=True, whiten_rewards=True, max_grad_norm=0.1,
        mini_batch_size=2 // world, gradient_accumulation_steps=2,
    )  # fmt: skip
    return outcome(made, steps(made, rank, world, 2))


def grouped(rank: int, world: int) -> dict[str, Any]:
    """Two answers to each of four queries, both on one rank; the deviation of rewards is that of both ranks."""
    made = trainer(world, advantage_estimator="grpo", scale_rewards="batch")
    queries, responses, scores = tiny.batch(ALL)
    given = (share(items, rank, world) for items in (queries[:4] * 2, responses, scores))
    return outcome(made, [made.step(*given)])


def early(rank: int, world: int) -> dict[str, Any]:
    """The KL of one rank alone would stop it, that of the other one would not."""
    made = trainer(world, ppo_epochs=4, early_stopping=True, target_kl=0.02, learning_rate=3e-2)
    made.updates.order = Given([[0, 1, 2, 3]], world)
    updates = 0
    step = made.engine.step

    def counted() -> None:
        nonlocal updates
        updates += 1
        step()

    made.engine.step = counted
    return outcome(made, steps(made, rank, world, 1)) | {"updates": updates}


def guarded(rank: int, world: int) -> dict[str, Any]:
    """After the first update the ratios of some mini-batches are above the threshold, on one rank only."""
    made = trainer(world, ratio_threshold=1.1, ppo_epochs=6, learning_rate=1e-2)
    local: list[float] = []
    sound = made.updates.sound
    made.updates.sound = lambda numbers: local.append(sound(numbers)) or local[-1]
    return outcome(made, steps(made, rank, world, 1)) | {"sound": local}


def overridden(rank: int, world: int) -> dict[str, Any]:
    """Updates through the methods of a subclass: with responses of one length, for it averages over mini-batches."""
    from ppo import PPOTrainer

    class Own(PPOTrainer):
        def loss(self, *batch: torch.Tensor) -> Any:
            policy, value, stats = super().loss(*batch)
            return 2 * policy, value, stats

    model = tiny.causal(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    config = tiny.config(**sizes(world, mini_batch_size=2 // world, gradient_accumulation_steps=2, early_stopping=True))
    made = Own(config, model, tiny.causal(1), tiny.tokenizer(), optimizer=optimizer)
    made.updates.order = Given([[0, 1, 2, 3], [2, 0, 3, 1]], world)
    stats = [made.step(*(share(i, rank, world) for i in tiny.batch(ALL, seed=s, equal=True))) for s in (0, 1)]
    return outcome(made, stats)


def gathering(rank: int, world: int) -> dict[str, Any]:
    from ppo import get_global_statistics

    made = trainer(world)
    xs, mask = torch.arange(16.0).view(8, 2), torch.arange(16).view(8, 2) % 3 > 0
    mean, variance, count = get_global_statistics(made.accelerator, xs[rank::world], mask[rank::world])
    ragged = {"number": float(rank), "row": np.arange(2.0) + rank, "matrix": np.full((2, 2 + rank), float(rank))}
    return {
        "statistics": (float(mean), float(variance), count),
        "gathered": made.gather_stats(ragged),
        "distributed": made.is_distributed,
        "drawn": made.generate(torch.tensor([3, 4]), max_new_tokens=30, do_sample=True, top_k=0)[0].tolist(),
        "main": made.accelerator.is_main_process,
        "sizes": (made.config.world_size, made.config.global_batch_size, made.config.global_backward_batch_size),
    }


def tracked(rank: int, world: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        made = trainer(world, log_with="tensorboard", project_kwargs={"project_dir": folder})
        seen: list[Any] = []
        made.accelerator.log = lambda values, step: seen.append(values)
        own = {"query": [f"q{rank}"] * (ALL // world), "response": [f"r{rank}"] * (ALL // world)}
        made.log_stats({}, own, [torch.tensor(float(i)) for i in range(rank, ALL, world)])
    return {"seen": seen}


def deepspeed_config(stage: int) -> Any:
    import deepspeed.ops
    from accelerate import DeepSpeedPlugin

    deepspeed.ops.__compatible_ops__ = {}  # else a C++ op is compiled
    return DeepSpeedPlugin(
        hf_ds_config={
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        }
    )


def sharded(stage: int, rank: int, world: int) -> dict[str, Any]:
    """Two steps, kept; a third; then a new trainer that loads what was kept and does the third again."""
    folder = Path(os.environ["TRIAL_FOLDER"]) / f"state-{stage}"
    results: dict[str, Any] = {}
    for attempt in ("whole", "resumed"):
        reset()
        options = {"accelerator_kwargs": {"deepspeed_plugin": deepspeed_config(stage)}}
        made = trainer(world, max_grad_norm=0.5, **options)
        if attempt == "whole":
            results["first"] = outcome(made, steps(made, rank, world, 2))
            made.save_state(folder / "state")
            made.save_pretrained(folder / "model")
            queries = share(tiny.batch(ALL)[0], rank, world)
            answers = made.generate(queries, max_new_tokens=5, do_sample=False, batch_size=2)
            results["answers"] = [answer.tolist() for answer in answers]
        else:
            made.load_state(folder / "state")
        results[attempt] = outcome(made, steps(made, rank, world, 1, first=2))
    return results | {"folder": str(folder), "stage": made.engine.stage}


def alone(rank: int, world: int) -> dict[str, Any]:
    """What `sharded` has to equal, without DeepSpeed."""
    made = trainer(world, max_grad_norm=0.5)
    first = outcome(made, steps(made, rank, world, 2))
    answers = made.generate(tiny.batch(ALL)[0], max_new_tokens=5, do_sample=False)
    return {
        "first": first,
        "answers": [a.tolist() for a in answers],
        "whole": outcome(made, steps(made, rank, world, 1, 2)),
    }


def loaded3(rank: int, world: int) -> dict[str, Any]:
    """Policy and reference are loaded in parts, and never whole on any rank."""
    from transformers.integrations import HfDeepSpeedConfig

    from ppo import AutoModelForCausalLMWithValueHead, create_reference_model

    reset()
    folder = Path(os.environ["TRIAL_FOLDER"])
    plugin = deepspeed_config(3)
    kept = HfDeepSpeedConfig(
        plugin.deepspeed_config | {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    )
    policy, reference = (
        AutoModelForCausalLMWithValueHead.from_pretrained(folder / f"start-{seed}", summary_dropout_prob=0.0)
        for seed in (0, 1)
    )
    assert all(hasattr(p, "ds_id") for p in reference.pretrained_model.parameters())
    refused = ""
    try:
        create_reference_model(policy)
    except ValueError as error:
        refused = str(error)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2, eps=1e-4)
    options = sizes(world, max_grad_norm=0.5, accelerator_kwargs={"deepspeed_plugin": plugin})
    made = tiny.trainer(policy, reference, optimizer, **options)
    made.updates.order = Given([[0, 1, 2, 3], [2, 0, 3, 1]], world)
    del kept
    return {"first": outcome(made, steps(made, rank, world, 2)), "refused": refused, "stage": made.engine.stage}


def reset() -> None:
    """Forget accelerate's state, and that models are to be built in parts."""
    from accelerate.state import AcceleratorState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    AcceleratorState._reset_state()
    unset_hf_deepspeed_config()


EVERY = (plain, shaped, grouped, early, guarded, overridden, gathering, tracked, alone, loaded3)
TRIALS = {trial.__name__: trial for trial in EVERY}
for _stage in range(4):
    TRIALS[f"sharded{_stage}"] = lambda rank, world, stage=_stage: sharded(stage, rank, world)


def launch(names: list[str], folder: Path, world: int = 2, seconds: float = 240) -> dict[str, list[Any]]:
    """Run trials on so many gloo ranks, one after the other in the same processes; results by name and rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = os.environ | {
        "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1", "TRIAL_FOLDER": str(folder), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    if any(name[-1].isdigit() for name in names):  # a stage
        common["ACCELERATE_USE_DEEPSPEED"] = "true"
    command = [sys.executable, "-m", "tests.ppo.rank_program", *names]
    ranks = []
    for rank in range(world):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world)}
        log = (folder / f"log-{rank}").open("w")
        ranks.append(subprocess.Popen(command, env=common | own, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT))
    try:
        codes = [rank.wait(seconds) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    logs = "\n".join((folder / f"log-{rank}").read_text()[-3000:] for rank in range(world))
    assert codes == [0] * world, logs
    parts = [pickle.loads((folder / f"result-{rank}").read_bytes()) for rank in range(world)]
    return {name: [part[name] for part in parts] for name in names}


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    found = {}
    for name in names:
        found[name] = TRIALS[name](rank, world)
        print(name, "done", flush=True)
    (Path(os.environ["TRIAL_FOLDER"]) / f"result-{rank}").write_bytes(pickle.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
