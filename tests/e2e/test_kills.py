"""Processes are killed and nodes taken away in the middle of a run; it ends with what an unbroken run ends with."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.torch import load_file

from pipeline.store.cache import Cache
from tests.e2e.running import ROOT, ray_align, rows, summary
from tests.pipeline.files import keys_in

pytestmark = [pytest.mark.ray, pytest.mark.long]

CONFIG = """
[run]
name = "killed"
audit = true
[data]
train = "pairs.jsonl"
max_length = 64
[tokenizer]
path = "bytes"
[policy]
kind = "huggingface"
[policy.config]
model_type = "llama"
vocab_size = 258
hidden_size = 64
intermediate_size = 128
num_hidden_layers = 4
num_attention_heads = 4
max_position_embeddings = 64
[reference]
actors = 2
batch_sequences = 8
[train]
epochs = 2
batch_pairs = 20
micro_batch_tokens = 512
learning_rate = 1e-2
checkpoint_steps = 10
[deepspeed]
stage = 2
[cluster]
workers = 2
[report]
tensorboard = false
"""
PAIRS = 1000
LIMIT = 600  # seconds until something that a test waits for must have happened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fresh(tmp_path)


def fresh(folder: Path) -> Path:
    """A folder with a configuration and its pairs."""
    pairs = [{"prompt": f"say word {i}:", "chosen": f" WORD {i}", "rejected": f" word {i}."} for i in range(PAIRS)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    (folder / "run.toml").write_text(CONFIG, encoding="utf-8")
    return folder


def start(folder: Path, verb: str, *overrides: str, **environment: str) -> subprocess.Popen[str]:
    out = (folder / "out.txt").open("a")
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", verb, str(folder / "run.toml"), *overrides],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **environment},
        stdout=out,
        stderr=out,
        text=True,
    )


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + LIMIT
    while not what():
        assert process.poll() is None, "the run ended first"
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def ended(process: subprocess.Popen[str], folder: Path) -> None:
    assert process.wait(LIMIT) == 0, (folder / "out.txt").read_text()


def cached(folder: Path) -> Cache:
    (where,) = (folder / "workspace" / "cache").iterdir()
    return Cache(str(where))


def scored(folder: Path) -> int:
    """Rows in the cache so far."""
    return cached(folder).rows() if (folder / "workspace" / "cache").exists() else 0


def steps_done(folder: Path) -> int:
    log = folder / "runs" / "killed" / "metrics.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def below(process: subprocess.Popen[str], title: str) -> list[psutil.Process]:
    """Ray's processes of that title that the run has started."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.cmdline()[:1] and title in child.cmdline()[0]:
                found.append(child)
        except psutil.Error:
            continue
    return found


def test_a_driver_killed_five_times_while_scoring_scores_almost_nothing_twice(folder, tmp_path_factory):
    draw = random.Random(0)
    for share in sorted(draw.uniform(0.05, 0.9) for _ in range(5)):
        process = start(folder, "score")
        wait_for(lambda share=share: scored(folder) >= share * 2 * PAIRS, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    ended(start(folder, "score"), folder)
    cache = cached(folder)
    keys = keys_in(cache)
    assert len(keys) == 2 * PAIRS
    in_flight = 5 * 2 * 8  # kills, actors, sequences of a part: computed and not written
    rescored = (cache.rows() - len(keys) + in_flight) / len(keys)
    print(f"rescored at most {rescored:.1%}, {cache.rows() - len(keys)} rows twice in the cache")
    assert rescored <= 0.05

    whole = fresh(tmp_path_factory.mktemp("whole"))
    ended(start(whole, "score"), whole)
    assert cached(whole).where.rpartition("/")[2] == cache.where.rpartition("/")[2]
    expected = cached(whole).values(keys)
    assert expected.keys() == cache.values(keys).keys()
    assert all(np.allclose(v, expected[k], rtol=0, atol=1e-5) for k, v in cache.values(keys).items())


def test_a_scoring_actor_that_is_killed_is_replaced(folder):
    process = start(folder, "score")
    wait_for(lambda: scored(folder) > 0.2 * 2 * PAIRS, process)
    below(process, "ray::MapWorker")[0].send_signal(signal.SIGKILL)
    ended(process, folder)
    assert len(keys_in(cached(folder))) == 2 * PAIRS


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """An unbroken run: its folder and final weights."""
    folder = fresh(tmp_path_factory.mktemp("unbroken"))
    done = ray_align("train", str(folder / "run.toml"))
    assert done.returncode == 0, done.stderr
    assert summary(folder / "runs" / "killed")["loss_last"] < 0.3
    return folder, load_file(folder / "runs" / "killed" / "weights" / "model.safetensors")


def scored_as(folder: Path, unbroken: Path) -> None:
    """Take over the unbroken run's workspace, so that both train on the same cache."""
    (folder / "workspace").symlink_to(unbroken / "workspace")


def check_as_unbroken(folder: Path, weights: dict) -> None:
    """The same weights bit for bit, and every row once."""
    found = load_file(folder / "runs" / "killed" / "weights" / "model.safetensors")
    assert found.keys() == weights.keys()
    assert all(found[name].equal(weights[name]) for name in weights)
    check_rows(folder)


def check_rows(folder: Path) -> None:
    """Of the audit, cut where each attempt went on, every row once an epoch."""
    run = folder / "runs" / "killed"
    attempts = [a["from_step"] for a in rows(run / "checkpoints" / "attempts.jsonl")]
    lines = rows(run / "audit.jsonl")
    assert len(attempts) > 1
    for epoch in range(2):
        seen = []
        for line in lines:
            later = attempts[line["attempt"] :]  # where those after it went on: what it did from there on was undone
            if line["epoch"] == epoch and all(line["step"] <= step for step in later):
                seen += line["row_ids"]
        assert len(seen) == PAIRS and len(set(seen)) == PAIRS


def test_a_training_worker_that_is_killed_is_replaced(folder, weights):
    scored_as(folder, weights[0])
    process = start(folder, "train")
    for step in (17, 44, 71):
        wait_for(lambda step=step: steps_done(folder) > step, process)
        random.Random(step).choice(below(process, "ray::RayTrainWorker")).send_signal(signal.SIGKILL)
        wait_for(lambda step=step: steps_done(folder) <= step, process)
    ended(process, folder)
    check_as_unbroken(folder, weights[1])


def test_a_driver_that_is_killed_in_training_goes_on_when_started_again(folder, weights):
    scored_as(folder, weights[0])
    for step in (13, 58):
        process = start(folder, "train")
        wait_for(lambda step=step: steps_done(folder) > step, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    ended(start(folder, "train"), folder)
    check_as_unbroken(folder, weights[1])


# In a process of its own, since a driver joins only one cluster: a head and two nodes for trainers; more on demand.
NODES = """
import subprocess, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3})
trainer = {"num_cpus": 1, "resources": {"trainer": 1}}
nodes = [cluster.add_node(**trainer) for _ in range(2)]
print(cluster.address, flush=True)
for line in sys.stdin:
    if line == "add\\n":
        nodes.append(cluster.add_node(**trainer))
    elif line == "announce\\n":
        command = ["ray", "drain-node", "--address", cluster.address, "--node-id", nodes[0].node_id]
        command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot instance"]
        subprocess.run([*command, "--deadline-remaining-seconds", "60"], check=True, stdout=subprocess.DEVNULL)
    else:
        cluster.remove_node(nodes.pop(0), allow_graceful=False)
    print("done", flush=True)
cluster.shutdown()
"""


@pytest.fixture
def nodes() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", NODES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    yield process
    process.stdin.close()
    process.wait(60)


def test_a_node_that_is_taken_away_is_replaced_by_a_spare_one(folder, weights, nodes):
    scored_as(folder, weights[0])
    address = nodes.stdout.readline().strip()
    process = start(folder, "train", "cluster.resources={trainer=1}", RAY_ADDRESS=address)
    wait_for(lambda: steps_done(folder) > 23, process)
    for command in ("add", "remove"):
        tell(nodes, command)
    ended(process, folder)
    check_as_unbroken(folder, weights[1])


def test_a_node_that_is_announced_to_go_costs_no_steps(folder, weights, nodes):
    """A checkpoint is written on the notice, between those by steps, and training goes on from it on the spare node."""
    scored_as(folder, weights[0])
    address = nodes.stdout.readline().strip()
    options = ("cluster.resources={trainer=1}", "train.checkpoint_steps=80", "train.max_failures=0")
    process = start(folder, "train", *options, RAY_ADDRESS=address)
    wait_for(lambda: steps_done(folder) > 13, process)
    for command in ("add", "announce"):
        tell(nodes, command)
    checkpoints = folder / "runs" / "killed" / "checkpoints"
    wait_for(lambda: any(checkpoints.glob("001-*/manifest.json")), process)
    (announced,) = checkpoints.glob("001-*")
    assert int(announced.name[4:]) < 80
    tell(nodes, "remove")
    ended(process, folder)
    first, second = (attempt["from_step"] for attempt in rows(checkpoints / "attempts.jsonl"))
    assert first == 0 and second >= int(announced.name[4:])  # training goes on until the node is gone
    check_as_unbroken(folder, weights[1])


def test_with_a_range_of_workers_training_goes_on_with_those_that_are_left(folder, weights, nodes):
    """Two workers, then one: the weights agree up to rounding, and every row is seen once an epoch."""
    scored_as(folder, weights[0])
    address = nodes.stdout.readline().strip()
    process = start(folder, "train", "cluster.workers=[1, 2]", "cluster.resources={trainer=1}", RAY_ADDRESS=address)
    wait_for(lambda: steps_done(folder) > 23, process)
    tell(nodes, "remove")
    ended(process, folder)
    check_rows(folder)
    ranks = {line["attempt"]: line["rank"] for line in rows(folder / "runs" / "killed" / "audit.jsonl")}
    assert len(ranks) > 1 and ranks[max(ranks)] == 0
    losses = [row["loss"] for row in rows(folder / "runs" / "killed" / "metrics.jsonl") if "loss" in row]
    expected = [row["loss"] for row in rows(weights[0] / "runs" / "killed" / "metrics.jsonl") if "loss" in row]
    assert losses == pytest.approx(expected, abs=1e-3)


def tell(nodes: subprocess.Popen[str], command: str) -> None:
    nodes.stdin.write(f"{command}\n")
    nodes.stdin.flush()
    assert nodes.stdout.readline() == "done\n"
