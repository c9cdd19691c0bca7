"""What the benchmarks measure is the same work, and what they predict is arithmetic. No time is measured here."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import pytest

from dpo.lm.flops import Work, training_flops
from dpo.text.tokenizers import byte_tokenizer
from examples.benchmarks import flops, ppo, workload
from examples.benchmarks.compare import ADAPTED, LADDER, WHOLE, write_adapter, write_model
from examples.benchmarks.contestants import Ours, Task
from examples.benchmarks.flops import Lengths
from tests.places import ROOT

SMALL = workload.llama(258, hidden=16, layers=2, heads=2, intermediate=24, positions=512)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    model = write_model(SMALL, byte_tokenizer(), tmp_path_factory.mktemp("benchmark"))
    pairs = [workload.Pair(p.prompt[:40], p.chosen[:20], p.rejected[:20]) for p in workload.hh_like(9, 258, 0)]
    adapter = write_adapter(model, 4, model.parent)
    return Task(model, [pairs[:3], pairs[3:6], pairs[6:]], 258, "float32", 1, "cpu", adapter)


@pytest.mark.parametrize("name", [name for name, system in LADDER.items() if isinstance(system, Ours)])
def test_every_rung_has_the_losses_of_the_first(task, name):
    """After an update too: of a system that leaves something out, the loss would go another way."""
    *_, first = losses("padded", task)
    assert losses(name, task) == pytest.approx(losses("padded", task), abs=1e-6)
    assert first != losses("padded", task)[1]


def losses(name, task, ladder=LADDER):
    """Of each step; the first answer of a system only says that it is set up."""
    _, *values = ladder[name].run(task)
    return values


def test_an_adapter_begins_as_whole_training_does_and_goes_another_way(task):
    assert losses("adapter", task, ADAPTED)[0] == pytest.approx(losses(WHOLE, task, ADAPTED)[0], abs=1e-6)
    assert losses("adapter", task, ADAPTED)[1:] != losses(WHOLE, task, ADAPTED)[1:]


@pytest.mark.parametrize("adapted", [False, True])
def test_trl_has_the_losses_of_ours(task, adapted):
    pytest.importorskip("trl")
    script = (
        "import pickle, sys\n"
        "from examples.benchmarks.contestants import Trl\n"
        "task = pickle.loads(bytes.fromhex(sys.stdin.read()))\n"
        f"trainer = Trl(3, adapted={adapted}).trainer(task, None, None)\n"
        "batch = trainer.data_collator(list(trainer.train_dataset)[:3])\n"
        "print(float(trainer.compute_loss(trainer.model, batch)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=pickle.dumps(task).hex(), capture_output=True, text=True, check=True
    )
    assert float(done.stdout.splitlines()[-1]) == pytest.approx(losses("+ cached reference", task)[0], abs=1e-5)


def test_contestants_take_the_same_ppo_step():
    """The KL is measured before the first update, so that the order of samples makes no difference."""
    found = ppo.measure(ppo.contestants([ROOT], None), rounds=1)
    (plain,), (grouped,) = found.values()
    assert plain["KL"] == pytest.approx(grouped["KL"], rel=1e-5)
    assert abs(plain["KL"]) > 0.1
    assert plain["loss"] != grouped["loss"]
    assert min(plain["seconds"], grouped["seconds"]) > 0


def test_hh_like_pairs_have_the_lengths_of_short_dialogues():
    pairs = workload.hh_like(4000, 2001, 0)
    mean = {side: sum(len(getattr(p, side)) for p in pairs) / len(pairs) for side in ("prompt", "chosen", "rejected")}
    assert mean == pytest.approx({"prompt": 124, "chosen": 47, "rejected": 47}, rel=0.05)
    steps = [
        [Lengths(len(p.prompt), len(p.chosen), len(p.rejected)) for p in pairs[i : i + 8]] for i in range(0, 4000, 8)
    ]
    real = sum(flops.unpadded(step).tokens for step in steps)
    padding = 1 - real / sum(flops.padded(step).tokens for step in steps)
    assert padding == pytest.approx(0.60, abs=0.03)  # as was measured on HH-RLHF at 8 pairs a micro-batch


def test_grouping_keeps_the_pairs_and_brings_prompts_together():
    pairs = [workload.Pair([n % 3], [n], [n + 1]) for n in range(9)]
    assert [p.prompt[0] for p in workload.grouped(pairs)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert sorted(p.chosen for p in workload.grouped(pairs)) == sorted(p.chosen for p in pairs)


def test_the_work_of_each_layout_by_hand():
    """Two pairs, P 10, C 4, R 2 and P 3, C 1, R 6: padded to 14, 4 rows; unpadded 26 + 13; shared 16 + 10."""
    pairs = [Lengths(10, 4, 2), Lengths(3, 1, 6)]
    assert flops.padded(pairs) == (56, 4 * 14**2, 56)
    assert flops.unpadded(pairs) == (39, 14**2 + 12**2 + 4**2 + 9**2, 39)
    assert flops.shared(pairs) == (26, 14**2 + 2 * 2 * 12 + 4**2 + 2 * 6 * 9, 13)


def test_flops_of_a_step_by_hand():
    """d 2, 1 layer, inner 3: body 4 * 4 + 3 * 6 = 34. One token, S2 = 1, a head of 5 tokens on it:
    3 (2 * 34 + 2 * 2 * 5) + 3.5 * 2 * 2 = 264 + 14.
    """
    model = {"hidden": 2, "layers": 1, "intermediate": 3}
    assert training_flops(flops.shape_of(model, 5), Work(1, 1, 1)) == 278


def test_measured_over_predicted(tmp_path, capsys, monkeypatch):
    """Without attention and head worth naming, sharing halves nothing here: 2 (10 + 10) tokens become 30."""
    report = {
        "data": "made up",
        "model": {"hidden": 10_000, "layers": 1, "intermediate": 10_000},
        "vocabulary": 1,
        "lengths": [[[10, 10, 10]]],
        "systems": {"padded": {"total_seconds": 8.0}, "+ shared prompts": {"total_seconds": 6.0}},
    }
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report))
    monkeypatch.setattr(sys, "argv", ["flops", str(path)])
    flops.main()
    out = capsys.readouterr().out
    assert "+ shared prompts" in out and "predicted  1.33x  measured  1.33x  1.00" in out
