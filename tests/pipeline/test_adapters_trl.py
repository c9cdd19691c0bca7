"""Twenty steps through the line, as an installed TRL makes them: the same losses, and the same adapter at the end."""

import json
import math
import warnings

import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file

from dpo.text.tokenizers import byte_tokenizer
from tests.dpo.lm.adapters import lora, saved
from tests.pipeline.adapted import NEW, prepared, sums, whole
from tests.pipeline.lab import losses, row, write_rows

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.group
SETTINGS = (
    "train.batch_pairs=2", "train.schedule=constant", "train.warmup_fraction=0", "train.checkpoint_steps=null",
    "data.eval=null",
)  # fmt: skip
KINDS = {
    "trained": {},
    "trained DoRA": {"target_modules": "all-linear", "use_dora": True},
    "trained with a head": {"modules_to_save": ["lm_head"]},
}
CASES = [
    ("new", 2), ("trained", 3),
    *(pytest.param("trained", stage, marks=pytest.mark.long) for stage in (0, 1, 2)),
    *(pytest.param("new", stage, marks=pytest.mark.long) for stage in (0, 1, 3)),
    *(pytest.param(kind, 2, marks=pytest.mark.long) for kind in KINDS if kind != "trained"),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    folder = prepared(tmp_path / "lab")
    write_rows(folder / "train.jsonl", [row(i) for i in range(40)])
    return folder


def ordered(run_dir):
    """The rows of all steps of a run, in the order in which it took them."""
    windows = sorted((run_dir / "epochs" / "0").glob("window-*.parquet"))
    return [each for window in windows for each in pq.read_table(window).to_pylist()]


def texts(folder, rows):
    """The same rows as they stand in the file."""
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    by_prompt = {tuple(byte_tokenizer()(line["prompt"]).input_ids): line for line in lines}
    return [by_prompt[tuple(each["prompt_ids"])] for each in rows]


def by_trl(base, start, rows, out):
    """Losses and end of TRL's trainer, which begins with an adapter and takes the rows in order."""
    tokenizer = byte_tokenizer()
    model = PeftModel.from_pretrained(base, start, is_trainable=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        args = trl.DPOConfig(
            str(out), per_device_train_batch_size=2, max_steps=20, learning_rate=1e-2, lr_scheduler_type="constant",
            beta=0.1, logging_steps=1, report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False,
            max_length=64, save_strategy="no", disable_tqdm=True, train_sampling_strategy="sequential",
        )  # fmt: skip
        data = datasets.Dataset.from_list(rows)
        trainer = trl.DPOTrainer(model, args=args, train_dataset=data, processing_class=tokenizer)
        trainer.train()
    found = [each["loss"] for each in trainer.state.log_history if "loss" in each]
    return found, get_peft_model_state_dict(trainer.model, adapter_name="default")


def by_hand(policy, rows):
    """Losses of plain AdamW on peft's own model, whose log-probs before training are the reference."""
    steps = [rows[i : i + 2] for i in range(0, 40, 2)]
    with torch.no_grad():
        reference = [sums(policy, step) for step in steps]
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    found = []
    for step, before in zip(steps, reference, strict=True):
        ratios = sums.__wrapped__(policy, step) - before
        loss = -torch.nn.functional.logsigmoid(0.1 * (ratios[0] - ratios[1])).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        found.append(float(loss))
    return found


@pytest.mark.parametrize(("kind", "stage"), CASES)
def test_losses_and_adapter_are_those_of_trl(lab, folder, tmp_path, kind, stage):
    words = NEW
    if kind != "new":
        start = saved(lora(whole(), **KINDS[kind]), tmp_path / "start")
        words = (f"policy.adapter.path={start}",)
    found = lab.line(folder, *words, *SETTINGS, f"deepspeed.stage={stage}")
    assert isinstance(found, dict), found
    if kind == "new":
        (start,) = (folder / "workspace" / "adapters").iterdir()
    rows = texts(folder, ordered(folder / "runs" / "base"))
    theirs, end = by_trl(whole(), start, rows, tmp_path / "trl")
    ours = losses(folder)
    assert len(ours) == len(theirs) == 20
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-4
    assert max(theirs) - min(theirs) > 0.05
    written = load_file(folder / "runs" / "base" / "weights" / "adapter_model.safetensors")
    assert max(float((written[name] - tensor).abs().max()) for name, tensor in end.items()) < 1e-3


def test_an_embeddings_adapter_begins_at_ln_2_where_trl_does_not(lab, folder, tmp_path):
    """TRL's copy of the start leaves the pair of the embedding out, so that its reference is another model."""
    start = saved(lora(whole(), target_modules=["q_proj", "v_proj", "embed_tokens"]), tmp_path / "start")
    assert isinstance(lab.line(folder, f"policy.adapter.path={start}", *SETTINGS), dict)
    rows = ordered(folder / "runs" / "base")
    ours = losses(folder)
    assert ours[0] == pytest.approx(math.log(2), abs=1e-6)
    plain = by_hand(PeftModel.from_pretrained(whole(), start, is_trainable=True).eval(), rows)
    assert max(abs(a - b) for a, b in zip(ours, plain, strict=True)) < 1e-4
    theirs, _ = by_trl(whole(), start, texts(folder, rows), tmp_path / "trl")
    assert abs(theirs[0] - math.log(2)) > 1e-2
