"""x-transformers: a TransformerWrapper around a Decoder, described by a few fields in `config.json`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from x_transformers import Decoder, TransformerWrapper

from dpo.lm.attention import tails_apart
from dpo.lm.batch import SequenceBatch
from dpo.lm.head import scoring_head_
from dpo.lm.modes import evaluating
from dpo.lm.sampling import Answering, Sampling
from dpo.lm.sequences import before_end
from dpo.lm.tied import own_tied_head_
from dpo.lm.weights import Gatherer, fill


class XTransformersModel(Answering):
    adapted = None  # adapters are put on Hugging Face models
    row_each = True  # the shared layout has one row per group
    plain_head = True

    def __init__(self, config: dict[str, Any], network: TransformerWrapper | None = None):
        """Take the network that `config` describes, or build it.

        It is built from `num_tokens`, `max_seq_len`, `dim`, `depth`, `heads`, `positions` ("rotary" or "absolute").

        `decoder` and `wrapper` in the config hold further keyword arguments of those two classes. Dropout arguments
        are ignored, because policy and reference must be the same function at the start.
        """
        super().__init__()
        self.config = config
        self.network = built(config) if network is None else network
        own_tied_head_(self.network)
        scoring_head_(self.network.to_logits)

    @classmethod
    def load(
        cls,
        folder: Path,
        config: dict[str, Any],
        dtype: torch.dtype,
        gathered: Gatherer = nullcontext,
    ) -> XTransformersModel:
        """Build the model of a `config.json` and copy the folder's weights into it; see `load_model`."""
        model = cls(config)
        fill(model.network, folder, gathered)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        # Buffers, frequencies of rotary positions, stay in float32: bfloat16 has no odd positions above 256.
        return model

    @classmethod
    def random(cls, config: dict[str, Any], seed: int) -> XTransformersModel:
        """Return a randomly initialised model."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config)

    @staticmethod
    def why_unshared(config: dict[str, Any]) -> str | None:
        """Return the reason in a model's config against sharing a prompt between its completions, or None."""
        given = {name for part in ("decoder", "wrapper") for name in config[part] if "dropout" not in name}
        unknown = sorted(given - SHARED_KEYWORDS)
        return f"{', '.join(unknown)} among the keywords of x-transformers" if unknown else None

    def forward(self, input_ids: Tensor, lengths: tuple[int, ...] | None = None) -> Tensor:
        """Compute logits [N, T, V] from ids [N, T], padded on the right. A causal model needs no mask for that.

        Args:
            lengths: of each row; this kind of model does not ask for them.
        """
        return self.network(input_ids)

    def hidden(self, batch: SequenceBatch) -> Tensor:
        """Compute the input of the head, [R, T, d], in either layout."""
        if batch.groups is None:
            return self.network(batch.input_ids, return_embeddings=True)
        rows, width = batch.input_ids.shape
        mask = tails_apart(batch.groups, rows, width, batch.input_ids.device)
        positions = batch.position_ids
        if self.config["positions"] == "absolute":
            # Looked up here, because a row of several sequences may be longer than max_seq_len; each sequence is not.
            positions = self.network.pos_emb(batch.input_ids[:, :1], pos=positions)  # type: ignore[operator]
        return self.network(batch.input_ids, return_embeddings=True, attn_mask=mask, pos=positions)

    def head(self) -> Any:
        return self.network.to_logits

    def restore_attention(self) -> None:
        """Do nothing: the attention of this kind is not changed."""

    @torch.no_grad()
    def continuations(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        eos_id: int,
        pad_id: int,
        temperature: float = 0.0,
        agreed: Callable[[bool], bool] | None = None,
    ) -> list[list[int]]:
        """Continue the prompts, with the keys and values of earlier tokens at hand."""
        device = next(self.network.parameters()).device
        length = max(map(len, prompts))
        ids = torch.tensor([[pad_id] * (length - len(p)) + p for p in prompts], device=device)
        padding = torch.tensor([length - len(p) for p in prompts], device=device)
        choice = Sampling(temperature=temperature) if temperature else Sampling(do_sample=False)
        ending = {"ends": [eos_id], "pad_id": pad_id, "agreed": agreed or bool}
        out = continued(self.network, ids, padding, max_new_tokens, choice, **ending)
        return [before_end(row, eos_id) for row in out[:, length:].tolist()]

    def on_disk(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
        """Return the tensors: on disk they have the names of the network."""
        return tensors

    def refuse_unwritable(self) -> None:
        """Do nothing: its tensors are written one by one, however they are divided."""

    def write_config(self, folder: Path) -> None:
        """Write `config.json`."""
        (folder / "config.json").write_text(json.dumps(self.config, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def continued(
    network: Any,
    ids: Tensor,
    padding: Tensor,
    max_new_tokens: int,
    sampling: Sampling,
    ends: Sequence[int] = (),
    pad_id: int | None = None,
    generator: torch.Generator | None = None,
    agreed: Callable[[bool], bool] = bool,
) -> Tensor:
    """Continue prompts without dropout: [N, T] ids -> [N, T + new], where new is smaller if all rows end before.

    (x-transformers' own sampler keeps the likeliest tenth of the tokens unless told otherwise, and takes an end token
    inside a prompt for the end of the answer.)

    Args:
        padding: [N], how many positions of padding each prompt has on the left.
        ends: the tokens behind which a row is over.
        pad_id: what fills a row that is over.
        generator: where the random numbers come from; None: torch's global one.
        agreed: what all who continue prompts together make of whether the rows of one are over.
    """
    out, cache = ids, None
    over = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    last = torch.tensor(ends, dtype=ids.dtype, device=ids.device)
    with evaluating(network):
        for _ in range(max_new_tokens):
            logits, after = network(
                out if cache is None else out[:, -1:],
                return_intermediates=True,
                seq_start_pos=padding,
                cache=cache,
                input_not_include_cache=cache is not None,
            )
            cache = after if network.can_cache_kv else None
            token = sampling.choose(logits[:, -1].float(), generator)
            if pad_id is not None:
                token = token.masked_fill(over, pad_id)
            out = torch.cat([out, token[:, None]], dim=1)
            over = over | torch.isin(token, last)  # only new tokens end a row
            if agreed(bool(over.all())):
                break
    return out


def built(config: dict[str, Any]) -> TransformerWrapper:
    """Build the network of a `config.json`, without dropout."""
    # Removed by name: flash attention and layer dropout store plain numbers, not nn.Dropout modules to set to 0.
    decoder, wrapper = (
        {name: value for name, value in config[part].items() if "dropout" not in name}
        for part in ("decoder", "wrapper")
    )
    decoder = {"attn_flash": True, "rotary_pos_emb": config["positions"] == "rotary", **decoder}
    return TransformerWrapper(
        num_tokens=config["num_tokens"],
        max_seq_len=config["max_seq_len"],
        use_abs_pos_emb=config["positions"] == "absolute",
        attn_layers=Decoder(dim=config["dim"], depth=config["depth"], heads=config["heads"], **decoder),
        **wrapper,
    )


# Keywords of Decoder and TransformerWrapper with which a token depends on its own sequence only, through attention.
SHARED_KEYWORDS = {
    "attn_flash", "attn_dim_head", "attn_kv_heads", "attn_one_kv_head", "attn_qk_norm", "attn_gate_values",
    "ff_glu", "ff_swish", "ff_relu_squared", "ff_mult", "ff_no_bias", "ff_post_act_ln",
    "use_rmsnorm", "use_simple_rmsnorm", "use_scalenorm", "pre_norm", "sandwich_norm", "use_layerscale",
    "rotary_pos_emb", "rotary_emb_dim", "rotary_base_rescale_factor", "rotary_interpolation_factor",
    "tie_embedding", "emb_dim", "logits_dim", "use_abs_pos_emb", "post_emb_norm",
}  # fmt: skip
