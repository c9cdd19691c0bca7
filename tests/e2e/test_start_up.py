"""A process of a run imports what it uses: only what holds a model loads torch, and the library of its kind."""

import json

import pytest

from examples.benchmarks.startup import CONFIG, LIBRARIES, command, make_pairs, processes, timed
from tests.places import ROOT

pytestmark = pytest.mark.ray

X_TRANSFORMERS = """
[policy]
kind = "x-transformers"
dim = 16
depth = 1
heads = 2
"""
COMPILER = LIBRARIES[-1]
HEAVY = {"torch", "transformers", "deepspeed"}


def run(folder, config):
    """The processes of a run up to its trained weights: what each called itself, and the libraries that it loaded."""
    folder.mkdir()
    make_pairs(folder / "pairs.jsonl")
    (folder / "tiny.toml").write_text(config, encoding="utf-8")
    timed(command(ROOT, "train", str(folder / "tiny.toml"), watched=folder / "watched"), folder)
    return [(" ".join(seen.titles), set(seen.imported)) for seen in processes(folder / "watched")]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return run(tmp_path_factory.mktemp("start") / "llama", CONFIG)


@pytest.fixture(scope="module")
def x_transformers(tmp_path_factory):
    config = CONFIG[: CONFIG.index("[policy]")] + X_TRANSFORMERS + CONFIG[CONFIG.index("[train]") :]
    return run(tmp_path_factory.mktemp("start") / "x", config)


def loaded(found, *names):
    """What the processes loaded that called themselves one of these names; there is such a process."""
    chosen = [imported for title, imported in found if any(name in title for name in names)]
    assert chosen, json.dumps([title for title, _ in found])
    return set.union(*chosen)


def test_the_driver_loads_no_torch(llama, x_transformers):
    for found in (llama, x_transformers):
        assert not loaded(found, "-m pipeline train") & HEAVY


def test_ray_trains_controller_loads_no_torch(llama, x_transformers):
    for found in (llama, x_transformers):
        assert not loaded(found, "TrainController") & HEAVY


def test_data_tasks_load_no_torch(llama, x_transformers):
    """Those of prepare and order, those that read sequences for the pool, and those that read windows for training."""
    for found in (llama, x_transformers):
        assert not loaded(found, "MapBatches(_on_items)", "MapBatches(read_sequences)", "_read_window") & HEAVY


def test_a_scorer_and_a_worker_load_what_they_need(llama, x_transformers):
    assert {"torch", "transformers"} <= loaded(llama, "MapWorker") and "deepspeed" in loaded(llama, "RayTrainWorker")
    assert {"torch", "x_transformers"} <= loaded(x_transformers, "MapWorker")
    assert "deepspeed" in loaded(x_transformers, "RayTrainWorker")


def test_no_process_is_started_that_has_nothing_to_do(llama):
    """Ray Train would start two: for data sets that it is handed, and for what a killed driver leaves on a cluster."""
    titles = " ".join(title for title, _ in llama)
    assert "RayTrainWorker" in titles
    assert "DatasetManager" not in titles and "PlacementGroupCleaner" not in titles


def test_a_worker_does_without_the_compiler(llama, x_transformers):
    for found in (llama, x_transformers):
        assert COMPILER not in loaded(found, "RayTrainWorker")


def test_an_x_transformers_policy_loads_no_model_of_transformers(x_transformers):
    assert "transformers" not in loaded(x_transformers, "MapWorker", "RayTrainWorker")
    assert "x_transformers" not in loaded(x_transformers, "TrainController", "-m pipeline train")
