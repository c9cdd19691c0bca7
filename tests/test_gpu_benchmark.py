"""The benchmark of a rented GPU: its targets are arithmetic, and all of its parts run with a tiny model on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from dpo.lm.flops import Work, shared_work
from dpo.lm.model_config import Shape
from examples.benchmarks.gpu import __main__ as program
from examples.benchmarks.gpu import lengths
from examples.benchmarks.gpu.jobs import apart
from examples.benchmarks.gpu.report import Report, Row, show, write
from examples.benchmarks.gpu.setting import MODELS, Setting
from examples.benchmarks.gpu.targets import HEAD_MARGIN, head_seconds, scoring_seconds, training_seconds, work_of
from examples.benchmarks.gpu.trace import seen_in
from examples.benchmarks.workload import Pair
from pipeline.errors import RunError
from pipeline.models.cards import CARDS
from tests.places import ROOT

# Pairs/s in training and sequences/s in scoring on an H100, by 2 FLOP a weight and token, three times in training.
TARGETS = {
    ("Qwen2.5-0.5B", "UltraFeedback"): (196, 1477),
    ("Qwen2.5-0.5B", "HH"): (628, 4715),
    ("Qwen2.5-0.5B", "Capybara"): (88, 664),
    ("Llama-3.2-1B", "UltraFeedback"): (78, 589),
    ("Llama-3.2-1B", "HH"): (243, 1824),
    ("Llama-3.2-1B", "Capybara"): (35, 264),
    ("Llama-3.1-8B", "UltraFeedback"): (13, 95),
}
NEEDS_A_GPU = {
    "look": {"copy from pinned memory", "copy from other memory"},
    "numbers": {"tiny: error of attention, one call"},
    "attention": {"tiny: one call"},
    "step": {f"tiny, stage {s}: {w}" for s in (1, 2) for w in ("busy", "waits in a step", "launches in a step")}
    | {f"tiny, stage {s}: share of the peak" for s in (1, 2)},
    "memory": {
        f"tiny: 64 tokens, checkpointing {c}: {w}"
        for c in ("off", "on")
        for w in ("peak over estimate", "estimate over peak")
    },
}


@pytest.mark.parametrize(("model", "data"), TARGETS)
def test_targets(model, data):
    shape, (prompt, completion) = Shape.of(MODELS[model]), lengths.MEANS[data]
    pair = shared_work(prompt, (completion, completion))
    rates = 1 / training_seconds(shape, pair, CARDS["H100"]), 2 / scoring_seconds(shape, pair, CARDS["H100"])
    assert tuple(map(round, rates)) == TARGETS[model, data]


def test_a_target_by_hand():
    """0.5B: 24 layers of 14,909,440 weights; a pair has 697 positions, of which 576 are scored."""
    linear, attention = 2 * 24 * 14_909_440 * 697, 2 * 896 * 24 * (2 * 409**2 - 121**2)
    head = 2 * 896 * 151_936 * 576
    flops = 3 * (linear + head) + 3.5 * attention
    pair = shared_work(121, (288, 288))
    assert pair == Work(697, 2 * 409**2 - 121**2, 576)
    seconds = training_seconds(Shape.of(MODELS["Qwen2.5-0.5B"]), pair, CARDS["H100"])
    assert seconds == pytest.approx(flops / (0.4 * 989e12))


def test_the_heads_target():
    """8,192 rows in chunks of 1 GiB: 15.0 + 3.7 ms at 0.5B, 29.0 + 5.6 ms at 1B, and a margin of 1.3."""
    found = [
        1e3 * HEAD_MARGIN * head_seconds(Shape.of(MODELS[name]), 8192, 1 << 30, CARDS["H100"])
        for name in ("Qwen2.5-0.5B", "Llama-3.2-1B")
    ]
    assert found == pytest.approx([1.3 * 18.7, 1.3 * 34.6], rel=0.01)


def test_the_work_of_pairs_counts_their_tokens():
    pairs = [Pair([1] * 10, [2] * 4, [3] * 2), Pair([1] * 3, [2], [3] * 6)]
    assert work_of(pairs) == (16 + 10, 14**2 + 12**2 - 10**2 + 4**2 + 9**2 - 3**2, 13)


@pytest.mark.parametrize("name", lengths.SETS)
def test_drawn_lengths_have_the_published_means(name):
    quantiles, means = lengths.SETS[name], lengths.MEANS[name]
    assert [lengths.mean(side) for side in quantiles] == pytest.approx(means, rel=0.01)
    drawn = lengths.draw(quantiles, 20_000, seed=0)
    assert drawn.mean(axis=0) == pytest.approx((means[0], means[1], means[1]), rel=0.03)
    assert np.median(drawn[:, 0]) == pytest.approx(quantiles[0][6], rel=0.05)
    assert drawn[:, 0].max() <= quantiles[0][-1] and drawn[:, 1:].min() >= quantiles[1][0]


def test_pairs_have_the_lengths_that_were_drawn():
    drawn = lengths.draw(lengths.TINY, 20, seed=1)
    pairs = lengths.pairs_of(drawn, 50, seed=1)
    assert [[len(p.prompt), len(p.chosen), len(p.rejected)] for p in pairs] == drawn.tolist()
    assert max(max(p.prompt) for p in pairs) < 50


def test_quantiles_of_a_file(tmp_path):
    """Three letters, then 1 to 3 for chosen and one for rejected, in a tokenizer of bytes."""
    from dpo.text.tokenizers import byte_tokenizer

    byte_tokenizer().save_pretrained(tmp_path / "bytes")
    rows = [{"prompt": "abc", "chosen": "d" * n, "rejected": "e"} for n in (1, 2, 3)]
    rows[0]["rejected"] = "f"  # else one row would contradict itself
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompt, completion = lengths.quantiles_of(path, tmp_path / "bytes")
    assert {*prompt} == {3} and completion[0] == 2 and completion[-1] == 4  # each with its end token


def test_what_a_trace_shows():
    """Two kernels that overlap cover 15 us, a copy apart from them 5; the call of an operator is not the GPU's."""
    events = [
        {"cat": "kernel", "name": "a", "ts": 100, "dur": 10},
        {"cat": "kernel", "name": "b", "ts": 105, "dur": 10},
        {"cat": "kernel", "name": "b", "ts": 106, "dur": 2},
        {"cat": "gpu_memcpy", "name": "HtoD", "ts": 90, "dur": 5},
        {"cat": "cpu_op", "name": "aten::mm", "ts": 0, "dur": 1000},
        {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 1, "dur": 1},
        {"cat": "cuda_driver", "name": "cuLaunchKernelEx", "ts": 2, "dur": 1},
        {"cat": "cuda_runtime", "name": "cudaStreamSynchronize", "ts": 3, "dur": 1},
        {"cat": "cuda_runtime", "name": "cudaMemcpyAsync", "ts": 4, "dur": 1},
        {"ph": "M", "name": "process_name"},
    ]
    seen = seen_in(events)
    assert (seen.busy, seen.waits, seen.launches) == (20, 1, 2)
    assert seen.longest == [("b", 12), ("a", 10), ("HtoD", 5)]


def test_a_report_says_what_was_missed(tmp_path, capsys):
    rows = [
        Row("fast", 120, "pairs/s", 100, look="nothing"),
        Row("slow", 50, "pairs/s", 100, look="the trace"),
        Row("large", 3, "GB", 2, True, "the budget"),
        Row("no number", float("nan"), "nats", 1, True, "the weights"),
        Row("unknown", None, "s", 1, True, "nothing"),
    ]
    assert [row.missed for row in rows] == [False, True, True, True, False]
    show("a part", Report(rows))
    said = capsys.readouterr().out
    assert "slow: next look at the trace" in said and "large: next look at the budget" in said
    assert "look at nothing" not in said
    path = write(tmp_path, 3, "head", {"card": "H100"}, Report(rows[:2], {"more": 1}), 1.26)
    found = json.loads(path.read_text(encoding="utf-8"))
    assert path.name == "3-head.json"
    assert (found["part"], found["card"], found["seconds"], found["details"]) == ("head", "H100", 1.3, {"more": 1})
    assert [(row["what"], row["ratio"], row["missed"]) for row in found["rows"]] == [
        ("fast", 1.2, False),
        ("slow", 0.5, True),
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", "4"])
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_table_of_targets_needs_none(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", "targets", "--card", "H200"])
    program.main()
    said = capsys.readouterr().out
    assert "H200 (141 GB)" in said and said.count("UltraFeedback") == 3


def seen(setting):
    print("beside the answer")
    return setting.device.type


def fail(setting):
    raise ValueError(f"no card like {setting.card}")


@pytest.mark.slow
def test_what_a_process_said_is_kept(tmp_path):
    setting = Setting(torch.device("cpu"), None, False, lengths.TINY, tmp_path, tmp_path)
    assert apart(setting, seen) == "cpu"
    with pytest.raises(RunError, match=r"fail\(\) ended early; .*fail\.log says why"):
        apart(setting, fail)
    assert "ValueError: no card like None" in (tmp_path / "fail.log").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """part -> what it wrote."""
    folder = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, "-m", "examples.benchmarks.gpu", "all", "--tiny", "--out", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    names = (f"{number}-{name}.json" for number, name in enumerate(program.PARTS))
    return {found["part"]: found for found in (json.loads((folder / name).read_text()) for name in names)}


@pytest.mark.group
@pytest.mark.parametrize("part", program.PARTS)
def test_every_part_runs_with_a_tiny_model(tiny, part):
    """What can be judged without a card is as it should be; what needs one is left out, and nothing else."""
    rows = {row["what"]: row for row in tiny[part]["rows"]}
    assert len(rows) == len(tiny[part]["rows"]) > 0
    assert [what for what, row in rows.items() if row["missed"]] == []
    absent = {what for what, row in rows.items() if row["measured"] is None}
    assert absent - {"TRL is not installed"} == NEEDS_A_GPU.get(part, set())


@pytest.mark.group
def test_the_resumed_curve_moves_and_is_that_of_the_whole_run(tiny):
    whole, resumed = (tiny["resume"]["details"][what] for what in ("whole", "on half the ranks"))
    assert whole["from"] == 0 and resumed["from"] == 3
    assert len({*whole["losses"]}) == len(whole["losses"]) == 6
    assert resumed["losses"] == pytest.approx(whole["losses"], rel=1e-3)
