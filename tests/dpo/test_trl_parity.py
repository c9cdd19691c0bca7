"""One batch through an installed TRL DPOTrainer and through ours: the same tokens, loss, gradients and metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from dpo.lm.batch import SequenceBatch
from dpo.lm.hf import HuggingFaceModel
from dpo.lm.logprobs import LogprobModel, Way
from dpo.lm.sequences import TokenSequence
from dpo.losses import LOSSES
from dpo.step import Baseline, couple, pair_logps, preference_step
from dpo.terms import REFERENCE_FREE, Mixture, Term
from dpo.text.pairs import PreferencePair
from dpo.text.tokenize import Rules, tokenize_pair
from dpo.text.tokenizers import byte_tokenizer
from tests.dpo.tiny import LLAMA, sharpen

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

BETA = 0.2
PAIRS = [
    PreferencePair("What is the capital of France? ", "Paris.", "It is Lyon, I believe."),
    PreferencePair("2 + 2 =", " 4", " 5"),
    PreferencePair("Sing:\n\n", "La la la, la la 🎵", "No."),
    PreferencePair("Q", "A somewhat longer answer than the question asked for.", "?"),
    PreferencePair("2 + 2 =", " 4", " 4 or 5"),  # a prompt and a completion again, and one that goes on
    PreferencePair("Say nothing, in as many words as you need to do so. ", ".", "..."),
]
WAYS = {"shared": Way(True), "padded": Way(False), "all logits": Way(False, False)}
OURS: set[str] = set()  # metrics that TRL does not have
METRICS = {
    "rewards/chosen": 1e-5,
    "rewards/rejected": 1e-5,
    "rewards/margins": 1e-5,
    "rewards/accuracies": 1e-6,  # a mean in float32
    "logps/chosen": 1e-4,  # TRL sums hundreds of nats in float32
    "logps/rejected": 1e-4,
}


class Case(NamedTuple):
    """The same loss in TRL's settings and in ours."""

    settings: dict[str, Any]  # attributes of TRL's trainer, beside those of PLAIN
    mixture: Mixture


PLAIN = {
    "loss_types": ["sigmoid"],
    "loss_weights": [1.0],
    "label_smoothing": 0.0,
    "ld_alpha": None,
    "use_weighting": False,
    "f_divergence_type": "reverse_kl",
    "f_alpha_divergence_coef": 0.5,
}
TRL_LOSSES = [
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired"),
    *("apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
]


SMOOTHED = {"robust", "exo_pair", "aot", "aot_unpaired"}


def term(kind: str, weight: float = 1.0, **more: Any) -> Term:
    options = {} if kind in REFERENCE_FREE else {"beta": BETA}
    if kind in SMOOTHED:
        options["label_smoothing"] = 0.1
    return Term(kind, {**options, **more.pop("options", {})}, weight, **more)


def mixed(**weights: float) -> Case:
    smoothing = 0.1 if weights.keys() & SMOOTHED else 0.0
    settings = {"loss_types": list(weights), "loss_weights": list(weights.values()), "label_smoothing": smoothing}
    return Case(settings, tuple(term(kind, weight) for kind, weight in weights.items()))


def divergent(ours: str, theirs: str, alpha: float = 0.5) -> Case:
    settings = {"f_divergence_type": theirs, "f_alpha_divergence_coef": alpha}
    return Case(settings, (term("sigmoid", options={"divergence": ours, "divergence_alpha": alpha}),))


CASES = {
    **{kind: mixed(**{kind: 1.0}) for kind in TRL_LOSSES},
    "ld-dpo": Case({"ld_alpha": 0.5}, (term("sigmoid", ld_alpha=0.5),)),
    "ld-dpo of 0": Case({"ld_alpha": 0.0}, (term("sigmoid", ld_alpha=0.0),)),
    "ld-dpo of means": Case({"ld_alpha": 0.5, "loss_types": ["ipo"]}, (term("ipo", ld_alpha=0.5),)),
    "wpo": Case({"use_weighting": True}, (term("sigmoid", wpo=True),)),
    "wpo and ld-dpo": Case({"use_weighting": True, "ld_alpha": 0.5}, (term("sigmoid", wpo=True, ld_alpha=0.5),)),
    "wpo of a mixture": Case(  # hinge would fail in TRL itself, which weighs a relu's output in place
        {"use_weighting": True, "loss_types": ["bco_pair", "apo_zero"], "loss_weights": [0.3, 2.0]},
        (term("bco_pair", 0.3, wpo=True), term("apo_zero", 2.0, wpo=True)),
    ),
    "forward kl": divergent("forward_kl", "forward_kl"),
    "js": divergent("js", "js_divergence"),
    "alpha": divergent("alpha", "alpha_divergence"),
    "another alpha": divergent("alpha", "alpha_divergence", 1.3),
    "reverse kl": divergent("reverse_kl", "reverse_kl"),
    "mpo": mixed(sigmoid=0.8, bco_pair=0.2, sft=1.0),
    "rpo": mixed(sigmoid=1.0, sft=0.3),
    "coupled and not": mixed(aot=0.5, robust=0.25, sft=0.1),
}


class OneBatch(NamedTuple):
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
            use_weighting=True,  # its models are then built to tell what WPO needs; PLAIN turns the weights off
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


def their_batch(trainer: Any) -> dict[str, torch.Tensor]:
    return trainer.data_collator(list(trainer.train_dataset))


def their_step(trainer: Any, settings: dict[str, Any]) -> OneBatch:
    """TRL's own tokens, collation, loss, backward and metrics."""
    for name, value in {**PLAIN, **settings}.items():
        assert hasattr(trainer, name)
        setattr(trainer, name, value)
    trainer.model.zero_grad()
    trainer.model.train()  # metrics are kept by mode
    value = trainer.compute_loss(trainer.model, their_batch(trainer))
    value.backward()
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items() if isinstance(values, list)}
    return OneBatch(value.item(), gradients(trainer.model), metrics)


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, HuggingFaceModel]:
    return {name: HuggingFaceModel(load(folder)) for name, folder in folders.items()}


def our_sequences() -> list[TokenSequence]:
    pairs = [tokenize_pair(byte_tokenizer(), pair, Rules(256, "drop")) for pair in PAIRS]
    chosen = [TokenSequence(p.prompt_ids, p.chosen_ids, p.chosen_mask) for p in pairs]
    return chosen + [TokenSequence(p.prompt_ids, p.rejected_ids, p.rejected_mask) for p in pairs]


def our_batch(model: LogprobModel) -> SequenceBatch:
    return model.collate(our_sequences(), byte_tokenizer().pad_token_id)


def our_step(models: dict[str, HuggingFaceModel], mixture: Mixture, way: Way) -> OneBatch:
    """As a worker does it: a first pass where a term is coupled, then terms, their sum and one division."""
    policy, reference = (LogprobModel(models[name], way) for name in ("policy", "reference"))
    batch, coupling = our_batch(policy), None
    with torch.no_grad():
        theirs = reference(batch).logps
        first = policy(batch).logps
    if any(term.coupled for term in mixture):
        coupling, _ = couple(pair_logps(batch, first), pair_logps(batch, theirs), mixture, Baseline())
    policy.zero_grad()
    ours = policy(batch, agreement=any(term.wpo for term in mixture))
    pairs_per_token = len(PAIRS) / int(batch.counts[: len(PAIRS)].sum())
    sums = preference_step(batch, ours, theirs, mixture, pairs_per_token, coupling)
    (sums.loss / len(PAIRS)).backward()
    metrics = {name: value.item() / len(PAIRS) for name, value in sums.metrics.items()}
    return OneBatch(metrics["loss"], gradients(policy.model.network), metrics)


def test_the_tokens_are_the_same(trainer, models):
    batch, theirs = our_batch(LogprobModel(models["policy"], WAYS["padded"])), their_batch(trainer)
    assert batch.input_ids.shape[0] == 2 * len(PAIRS)
    assert torch.equal(theirs["input_ids"], batch.input_ids)
    scored = torch.zeros_like(batch.input_ids, dtype=torch.bool).flatten()
    scored[batch.sources + 1] = True  # a token is predicted from the place before it
    assert torch.equal(theirs["completion_mask"].bool(), scored.view_as(batch.input_ids))


def test_the_shared_layout_shares(models):
    padded, shared = (our_batch(LogprobModel(models["policy"], WAYS[name])) for name in ("padded", "shared"))
    assert len(shared.groups) == len({pair.prompt for pair in PAIRS}) == len(PAIRS) - 1
    assert shared.filled < 0.7 * padded.filled
    assert len(shared.sources) < len(shared.scored)


def test_these_are_all_of_trl_losses():
    assert CASES.keys() >= set(TRL_LOSSES)
    assert LOSSES.keys() >= set(TRL_LOSSES)
    assert len(set(TRL_LOSSES)) == 15


@pytest.fixture(scope="module")
def answers(trainer) -> dict[str, OneBatch]:
    return {name: their_step(trainer, case.settings) for name, case in CASES.items()}


def test_no_two_cases_are_one(answers):
    """Or else a setting that TRL does not look at would pass."""
    losses = {name: answer.loss for name, answer in answers.items() if name != "reverse kl"}
    assert len({round(loss, 5) for loss in losses.values()}) == len(losses)
    assert answers["reverse kl"].loss == answers["sigmoid"].loss
    assert abs(answers["sigmoid"].loss - 0.6931) > 0.05  # or else any two models that are alike would agree


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_are_the_same(answers, models, name, way):
    """Relative to their size: sppo_hard squares nats.

    Two divergences have e^-c, of which TRL's float32 sums of hundreds of nats, 3e-5 off, are a relative error.
    """
    tolerance = 1e-4 if name in ("forward kl", "alpha", "another alpha") else 1e-5
    theirs, ours = answers[name], our_step(models, CASES[name].mixture, WAYS[way])
    assert ours.loss == pytest.approx(theirs.loss, rel=tolerance)
    assert ours.gradients.keys() == theirs.gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in theirs.gradients.values())
    assert largest > 1e-3
    for key, gradient in theirs.gradients.items():
        assert gradient.any(), key
        torch.testing.assert_close(ours.gradients[key], gradient, atol=tolerance * max(1.0, largest), rtol=0)
        assert (ours.gradients[key] - gradient).norm() <= 1e-4 * gradient.norm(), key


@pytest.mark.parametrize("way", WAYS)
def test_the_metrics_are_the_same(answers, models, way):
    for name in ("sigmoid", "mpo", "aot"):
        theirs, ours = answers[name].metrics, our_step(models, CASES[name].mixture, WAYS[way]).metrics
        assert ours.keys() - {"loss"} - OURS == METRICS.keys()
        for metric, tolerance in METRICS.items():
            assert ours[metric] == pytest.approx(theirs[metric], abs=tolerance), (name, metric)
