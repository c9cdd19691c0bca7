"""The pool of frozen models: all that ask one run where [reference] says, on a cluster of two kinds of nodes."""

import numpy as np
import pyarrow as pa
import pytest
import ray
from ray.cluster_utils import Cluster

from pipeline import upkeep
from pipeline.cluster.connect import connect, disconnect
from pipeline.cluster.pool import on_pool
from pipeline.models.start import Weights
from pipeline.place import Place
from pipeline.run import run
from pipeline.stages import evaluate
from pipeline.stages.preflight import preflight
from tests.pipeline.cluster.apart import config_apart

pytestmark = pytest.mark.ray


def here():
    return ray.get_runtime_context().get_node_id()


def answer_with_the_node(**_options):
    """In place of a model: every prompt is answered by the letters of the node's id."""

    def answer(table):
        answers = [[[ord(letter) for letter in here()] for _ in prompts] for prompts in table["prompts"].to_pylist()]
        return pa.table({"numbers": table["numbers"], "answers": pa.array(answers, pa.list_(pa.list_(pa.int64())))})

    return answer


def agree_and_write_the_node(cache, **_options):
    """In place of a model: its log-probs are those of the cache, and beside the cache stands where that was found."""

    def compare(table):
        with open(f"{cache}/node.txt", "a", encoding="utf-8") as file:
            file.write(f"{here()}\n")
        return pa.table({"differences": [np.zeros(1)] * len(table)})

    return compare


@pytest.fixture(scope="module")
def two_kinds():
    """A node for training and one for scoring: the address, and the id of the second."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "resources": {"trainer": 1}})
    scorer = cluster.add_node(num_cpus=2, resources={"scorer": 1})
    yield cluster.address, scorer.node_id
    cluster.shutdown()


@pytest.fixture
def config(two_kinds, tmp_path):
    yield config_apart(tmp_path, two_kinds[0])
    disconnect()


@pytest.fixture
def place(config):
    place = Place.of(config)
    place.run_dir.mkdir(parents=True)
    place.workspace.mkdir()
    return place


def test_answers_are_given_on_the_scorers_node(two_kinds, place, monkeypatch):
    monkeypatch.setattr(evaluate, "answerer", answer_with_the_node)
    connect(place)
    prompts = [{"prompt": [1, 2]}, {"prompt": [3]}]
    answers = evaluate._generate(place, preflight(place), prompts, Weights(place.workspace, ""), "before")
    assert ["".join(map(chr, answer)) for answer in answers] == [two_kinds[1]] * 2


def test_the_cache_is_verified_on_the_scorers_node(two_kinds, config, monkeypatch, capsys):
    monkeypatch.setattr(upkeep, "verifier", agree_and_write_the_node)
    run(config, "score")
    upkeep.verify(Place.of(config), 10)
    assert "10 of 24 cached sequences scored again" in capsys.readouterr().out
    (found,) = Place.of(config).workspace.glob("cache/*/node.txt")
    assert set(found.read_text(encoding="utf-8").split()) == {two_kinds[1]}


def test_nothing_to_ask_starts_nothing(config):
    assert list(on_pool(Place.of(config), [], answer_with_the_node, {})) == []
    assert not ray.is_initialized()
