"""A type of model -> the verdict on it: prompts are shared or repeated, or it is refused; and whether that is right.

python -m tests.dpo.lm.families     writes the table of examples/guides/models.md; minutes
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM

from dpo.errors import InputError
from dpo.lm.judge import judge
from dpo.lm.logprobs import LogprobModel, Way
from dpo.lm.model_config import read_config, vocabulary_size
from dpo.lm.models import load_model, why_unshared
from dpo.lm.sequences import TokenSequence
from dpo.lm.small import try_small
from dpo.lm.trial import fastest_way, try_ways
from tests.dpo.lm.kinds import LONGROPE, NOT_BUILT, TYPES, VOCABULARY, tiny_folder
from tests.places import ROOT

GUIDE = ROOT / "examples" / "guides" / "models.md"
BEGIN, END = "<!-- table -->", "<!-- end of the table -->"
ALIKE = 2e-5  # nats a token up to which two ways to compute a log-prob in float32 are the same
CASES: dict[str, tuple[str, dict[str, Any]]] = {"phi3 with longrope": ("phi3", LONGROPE)}
FLOAT32_ALONE = {"reformer", "xlstm"}  # types whose own forward pass in the library fails in bfloat16
LOOKS_AHEAD = "lets a token see those behind it"


class Verdict(NamedTuple):
    """What became of a type."""

    outcome: str  # "shared", "repeated" or "refused"
    reason: str = ""  # of a refusal
    evaluated: float = 0.0  # largest difference of a log-prob from one plain forward of its sequence alone
    trained: float = 0.0  # the same as training computes it
    way: Way | None = None
    narrow: Way | None = None  # in bfloat16, where the library's own forward takes it
    ahead: bool = False  # whether a plain forward lets a token see the last one


def verdict(name: str, folder: Path) -> Verdict:
    """The verdict on a type, or a case of CASES, with a tiny model in a folder."""
    kind, fields = CASES.get(name, (name, {}))
    tiny_folder(folder, kind, **fields)
    plain: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    try:
        judge(folder)
        try_small(folder)
        model = asked(folder, torch.float32)
        narrow = model.way if kind in FLOAT32_ALONE else asked(folder, torch.bfloat16).way
    except InputError as error:
        return Verdict("refused", str(error), ahead=sees_ahead(plain))
    batch = sequences()
    expected = alone(plain, batch)
    with torch.no_grad():
        evaluated = together(model, batch)
    if model.model.network.supports_gradient_checkpointing:
        model.model.checkpoint_activations()
        model.model.recompute_in_evaluation()
    trained = together(model, batch).detach()
    apart = [float((found - expected).abs().max()) for found in (evaluated, trained)]
    return Verdict("shared" if model.way.shared else "repeated", "", *apart, model.way, narrow)


def asked(folder: Path, dtype: torch.dtype) -> LogprobModel:
    """The model of a folder with its way, as scoring and training find it."""
    model, config = LogprobModel(load_model(folder, dtype).eval()), read_config(folder)
    may_share, vocabulary = why_unshared(config) is None, vocabulary_size(config) or 2
    trial = try_ways(model, config, vocabulary, may_share, torch.device("cpu"))
    model.way = fastest_way(model, trial, vocabulary, may_share, torch.device("cpu")).way
    return model


def sequences() -> list[TokenSequence]:
    """Completions of three prompts: 13 tokens stand beside 70 in one batch, and all are random."""
    draw = np.random.default_rng(3)

    def some(count: int) -> list[int]:
        return draw.integers(3, VOCABULARY, count).tolist()  # without the tokens that pad, begin and end

    found = []
    for prompt, lengths in ((some(9), (7, 4)), (some(30), (40, 11, 25)), (some(17), (6, 21))):
        start = some(2)
        found += [TokenSequence(prompt, start + some(n - 2), [True] * n) for n in lengths]
    return found


@torch.no_grad()
def alone(network: Any, batch: list[TokenSequence]) -> Tensor:
    """Log-probs of a plain forward pass of each sequence alone."""
    found = []
    for sequence in batch:
        ids = torch.tensor([[*sequence.prompt_ids, *sequence.completion_ids]])
        logits = network(input_ids=ids, use_cache=False).logits[0].float()
        at = torch.arange(len(sequence.prompt_ids), ids.shape[1])
        found.append(logits[at - 1].log_softmax(-1)[torch.arange(len(at)), ids[0, at]])
    return torch.cat(found)


def together(model: LogprobModel, batch: list[TokenSequence]) -> Tensor:
    return model(model.collate(batch, 0)).logps.float()


@torch.no_grad()
def sees_ahead(network: Any) -> bool:
    """Whether what a plain forward says of a token depends on the last one, by its id or by its being there."""
    ids = torch.tensor([[*sequences()[0].prompt_ids]])
    other = torch.cat([ids[:, :-1], ids[:, -1:] + 1 - 2 * (ids[:, -1:] == VOCABULARY - 1)], dim=1)
    asked = (ids, other, ids[:, :-1])
    one, two, cut = (network(input_ids=inputs, use_cache=False).logits[:, : ids.shape[1] - 1] for inputs in asked)
    return bool(max((one - two).abs().max(), (one - cut).abs().max()) > 1e-3)


TITLES = {
    "shared": "**shared**: a prompt is computed once for all of its answers",
    "repeated": "**repeated**: a prompt is computed anew for each answer",
    "refused": "**refused**: as configured by default, a token sees those behind it",
    "": "not tried: no small model of it could be built",
}


def table(outcomes: dict[str, str]) -> str:
    """The table for users: the types of each outcome; those without one were not tried."""
    found = [f"transformers {transformers.__version__}, {len(TYPES)} types of model", ""]
    found += ["| prompts | types | `model_type` |", "| --- | --- | --- |"]
    for outcome, title in TITLES.items():
        kinds = [kind for kind in TYPES if outcomes.get(kind, "") == outcome]
        found.append(f"| {title} | {len(kinds)} | {', '.join(kinds)} |")
    return "\n".join(found)


def written_table() -> str:
    """The table as the guide has it."""
    return GUIDE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    found = {}
    for kind in TYPES:
        if kind not in NOT_BUILT:
            with tempfile.TemporaryDirectory() as folder:
                found[kind] = verdict(kind, Path(folder)).outcome
    before, _, rest = GUIDE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    GUIDE.write_text(f"{before}{BEGIN}\n{table(found)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
