"""A small configuration whose scorers and trainers are asked for on nodes of different kinds."""

from pipeline.config import Config
from tests.pipeline.files import config_file, jsonl


def config_apart(folder, address):
    """Twelve pairs; actors need the resource "scorer", workers "trainer", on the cluster at this address."""
    pairs = [{"prompt": f"say {i}:", "chosen": f" WORD {i}", "rejected": f" word {i}"} for i in range(12)]
    path = config_file(
        folder,
        run={"dir": str(folder / "runs"), "workspace": str(folder / "workspace")},
        data={"train": str(jsonl(folder / "pairs.jsonl", pairs)), "max_length": 64},
        policy={"kind": "x-transformers", "dim": 16, "depth": 1, "heads": 2},
        reference={"resources": {"scorer": 1.0}},
        cluster={"address": address, "resources": {"trainer": 1.0}},
    )
    return Config.load(path)
