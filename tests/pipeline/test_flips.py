"""One flipped bit in each kind of file that a run leaves: the same numbers come out, or an error names the file."""

import json
import random
import shutil

import pytest

from tests.pipeline.lab import SFT, copied, flip, losses

pytestmark = pytest.mark.group
FEW, MANY = 1, 200  # flips of each kind

# What is flipped; what goes before the same command is given again (so that it reads the file); what may be said.
KINDS = {
    "tokens": (
        "workspace/tokens/*/train/*.parquet",
        ("epochs", "weights", "evaluation", "checkpoints"),
        None,
    ),
    "held-out tokens": ("workspace/tokens/*/eval/*.parquet", ("epochs", "evaluation"), None),
    "random model": ("workspace/models/*/model.safetensors", ("weights", "evaluation", "checkpoints"), None),
    "sft model": ("workspace/sft/*/model/model.safetensors", ("weights", "evaluation", "checkpoints"), None),
    "window": ("runs/base/epochs/0/*.parquet", ("weights", "evaluation", "checkpoints"), None),
    "lengths": ("runs/base/epochs/0/*.npz", ("weights", "evaluation", "checkpoints"), None),
    "held-out window": ("runs/base/epochs/eval/*.parquet", ("evaluation",), None),
    "checkpoint": ("runs/base/checkpoints/001-00000006/state/*.pt", ("weights", "evaluation"), None),
    "weights": ("runs/base/weights/model.safetensors", ("evaluation", "export"), "weights/model.safetensors"),
    "weights' config": ("runs/base/weights/config.json", ("evaluation", "export"), "weights/config.json"),
    "export": ("runs/base/export/model.safetensors", (), ".safetensors"),  # which has the weights' bytes
    "export's tokenizer": ("runs/base/export/tokenizer.json", (), "export/tokenizer.json"),
    "card": ("runs/base/export/README.md", (), "export/README.md"),
    "evaluation": ("runs/base/evaluation/*.parquet", (), None),
    "manifest of tokens": ("workspace/tokens/*/manifest.json", ("epochs",), None),
    "manifest of weights": ("runs/base/weights/manifest.json", ("evaluation", "export"), None),
    "manifest of epochs": ("runs/base/epochs/manifest.json", ("evaluation",), None),
    "manifest of evaluation": ("runs/base/evaluation/manifest.json", (), None),
    "manifest of export": ("runs/base/export/manifest.json", (), None),
    "digests": ("workspace/digests.json", (), None),
    "inputs": ("runs/base/inputs.json", (), None),
    "metrics": ("runs/base/metrics.jsonl", ("weights", "evaluation", "checkpoints/001-00000006"), None),
}


def outcome(folder):
    """Losses, and what the summary, the trained and the exported weights are."""
    found = json.loads((folder / "runs/base/summary.json").read_text(encoding="utf-8"))
    kept = {name: found[name] for name in ("loss_first", "loss_last", "eval_accuracy", "steps", "pairs_used")}
    weights = [(folder / "runs/base" / name / "model.safetensors").read_bytes() for name in ("weights", "export")]
    return losses(folder), kept, weights


FLIPS = [*((kind, FEW) for kind in KINDS), *(pytest.param(kind, MANY, marks=pytest.mark.long) for kind in KINDS)]


@pytest.mark.parametrize(("kind", "count"), FLIPS)
def test_a_flipped_bit_gives_the_same_numbers_or_an_error_that_names_the_file(lab, whole, tmp_path, kind, count):
    pattern, gone, named = KINDS[kind]
    draw = random.Random(kind)
    for number in range(count):
        folder = copied(whole, tmp_path / str(number))
        path = draw.choice(sorted(folder.glob(pattern)))
        for name in gone:
            shutil.rmtree(folder / "runs/base" / name)
        flip(path, draw.randrange(path.stat().st_size), draw.randrange(8))
        said = lab.line(folder, *SFT)
        if isinstance(said, dict):
            assert named is None, f"nobody looked at {path}"
            assert different(outcome(folder), outcome(whole), kind) == []
        else:
            assert said.startswith("InputError: ") and (named or "manifest") in said, said
        shutil.rmtree(folder)


def different(found, expected, kind):
    """Which of losses, summary and weights differ; the flipped line of a log is set aside."""
    names = ("losses", "summary", "weights")
    pairs = zip(names, found, expected, strict=True)
    return [name for name, one, other in pairs if one != other and not (kind == "metrics" and name == "losses")]
