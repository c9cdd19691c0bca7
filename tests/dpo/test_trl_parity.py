"""One batch through an installed TRL DPOTrainer and through ours: the same tokens, loss, gradients and metrics."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from dpo.batch import PairBatch, collate_pairs
from dpo.logprobs import LogprobModel
from dpo.losses import LOSSES
from dpo.models import HuggingFaceModel
from dpo.pairs import PreferencePair, TokenSequence
from dpo.step import StepSums, preference_step
from dpo.tokenize import byte_tokenizer, tokenize_pair
from tests.dpo.tiny import LLAMA, sharpen

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

BETA = 0.2
PAIRS = [
    PreferencePair("What is the capital of France? ", "Paris.", "It is Lyon, I believe."),
    PreferencePair("2 + 2 =", " 4", " 5"),
    PreferencePair("Sing:\n\n", "La la la, la la 🎵", "No."),
    PreferencePair("Q", "A somewhat longer answer than the question asked for.", "?"),
    PreferencePair("Say nothing, in as many words as you need to do so. ", ".", "..."),
]


class OneBatch(NamedTuple):
    batch: dict[str, torch.Tensor]
    loss: float
    gradients: dict[str, torch.Tensor]
    metrics: dict[str, float]


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def gradients(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A reference and a policy that has moved away from it, so that the loss is not ln 2."""
    root = tmp_path_factory.mktemp("models")
    model = HuggingFaceModel.random({**LLAMA, "vocab_size": 258, "max_position_embeddings": 256}, seed=0)
    sharpen(model, seed=0, size=0.1).network.save_pretrained(root / "reference")
    sharpen(model, seed=1, size=0.04).network.save_pretrained(root / "policy")
    return {name: root / name for name in ("reference", "policy")}


@pytest.fixture(scope="module")
def trainer(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """TRL's own, with the same strings."""
    return trl.DPOTrainer(
        model=load(folders["policy"]),
        ref_model=load(folders["reference"]),
        args=trl.DPOConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")),
            beta=BETA,
            loss_type="sigmoid",
            max_length=None,
            per_device_train_batch_size=len(PAIRS),
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
        ),
        train_dataset=datasets.Dataset.from_list([pair._asdict() for pair in PAIRS]),
        processing_class=byte_tokenizer(),
    )


def their_step(trainer: Any, loss: str, label_smoothing: float) -> OneBatch:
    """TRL's own tokens, collation, loss, backward and metrics."""
    trainer.loss_types, trainer.label_smoothing = [loss], label_smoothing
    batch = trainer.data_collator(list(trainer.train_dataset))
    trainer.model.zero_grad()
    trainer.model.train()  # metrics are kept by mode
    value = trainer.compute_loss(trainer.model, batch)
    value.backward()
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return OneBatch(batch, value.item(), gradients(trainer.model), metrics)


@pytest.fixture(scope="module")
def theirs(trainer: Any) -> OneBatch:
    return their_step(trainer, "sigmoid", 0.0)


def our_batch() -> PairBatch:
    tokenizer = byte_tokenizer()
    pairs = [tokenize_pair(tokenizer, pair, max_length=256, truncation="reject") for pair in PAIRS]
    chosen = [TokenSequence(p.prompt_ids, p.chosen_ids, p.chosen_mask) for p in pairs]
    rejected = [TokenSequence(p.prompt_ids, p.rejected_ids, p.rejected_mask) for p in pairs]
    return collate_pairs(chosen, rejected, tokenizer.pad_token_id)


@pytest.fixture(scope="module")
def ours(folders: dict[str, Path]) -> tuple[StepSums, dict[str, torch.Tensor]]:
    return our_step(folders, "sigmoid", {"label_smoothing": 0.0})


def our_step(
    folders: dict[str, Path], loss: str, options: dict[str, float]
) -> tuple[StepSums, dict[str, torch.Tensor]]:
    policy, reference = (LogprobModel(HuggingFaceModel(load(folders[name]))) for name in ("policy", "reference"))
    batch = our_batch()
    with torch.no_grad():
        reference_logps = reference(batch.input_ids, batch.completion_mask)
    policy_logps = policy(batch.input_ids, batch.completion_mask)
    sums = preference_step(policy_logps, reference_logps, loss, {"beta": BETA, **options})
    (sums.loss / len(PAIRS)).backward()
    return sums, gradients(policy.model.network)


def test_the_tokens_are_the_same(theirs):
    batch = our_batch()
    assert batch.input_ids.shape[0] == 2 * len(PAIRS)
    assert torch.equal(theirs.batch["input_ids"], batch.input_ids)
    assert torch.equal(theirs.batch["completion_mask"].bool(), batch.completion_mask)


def test_the_loss_is_the_same(theirs, ours):
    loss = ours[0].loss.item() / len(PAIRS)
    assert abs(loss - 0.6931) > 0.05  # or else any two models that are alike would agree
    assert loss == pytest.approx(theirs.loss, abs=1e-5)


def test_the_gradients_are_the_same(theirs, ours):
    assert ours[1].keys() == theirs.gradients.keys()
    for name, gradient in ours[1].items():
        assert gradient.abs().max() > 1e-3, name
        torch.testing.assert_close(
            gradient, theirs.gradients[name], atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(
    ("metric", "tolerance"),
    [
        ("rewards/chosen", 1e-5),
        ("rewards/rejected", 1e-5),
        ("rewards/margins", 1e-5),
        ("rewards/accuracies", 1e-6),  # a mean in float32
        ("logps/chosen", 1e-4),  # TRL sums hundreds of nats in float32
        ("logps/rejected", 1e-4),
    ],
)
def test_the_metrics_are_the_same(theirs, ours, metric, tolerance):
    assert ours[0].metrics[metric].item() / len(PAIRS) == pytest.approx(theirs.metrics[metric], abs=tolerance)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "sigmoid"])
def test_every_other_loss_is_the_same(trainer, folders, name):
    """Value and gradients, relative to their size: sppo_hard squares nats."""
    smoothed = name in ("robust", "exo_pair")
    theirs = their_step(trainer, name, 0.1 if smoothed else 0.0)
    sums, ours = our_step(folders, name, {"label_smoothing": 0.1} if smoothed else {})
    assert sums.loss.item() / len(PAIRS) == pytest.approx(theirs.loss, rel=1e-5)
    for key, gradient in ours.items():
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(gradient / scale, theirs.gradients[key] / scale, atol=1e-5, rtol=0)
    assert max(float(gradient.abs().max()) for gradient in ours.values()) > 1e-3
