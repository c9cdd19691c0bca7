"""The KL penalty between policy and reference: its estimators, and the controllers of its coefficient."""

from __future__ import annotations

from typing import Any, Literal, get_args

from torch import Tensor

KLPenalty = Literal["kl", "abs", "mse", "full"]


class AdaptiveKLController:
    """Moves the coefficient so that the measured KL comes to `target` (Ziegler et al. 2019, section 2.2).

    `target` is a sum over the tokens of a response, averaged over responses. It is meant for the estimators "kl" and
    "full": "abs" and "mse" are no KL, and comparing them with a target of KL is a choice of the user's.

    Raises:
        ValueError: a target or horizon that is not above 0.
    """

    def __init__(self, init_kl_coef: float, target: float, horizon: float):
        for name, value in (("target", target), ("horizon", horizon)):
            if not value > 0:
                raise ValueError(f"{name} = {value} of the adaptive KL controller must be above 0")
        self.value = float(init_kl_coef)
        self.target, self.horizon = float(target), float(horizon)

    def update(self, current: float, n_steps: int) -> None:
        """`current` KL, measured over `n_steps` samples of all ranks.

        The coefficient never changes its sign: TRL's does where n_steps is above 5 horizons.
        """
        error = min(max(float(current) / self.target - 1, -0.2), 0.2)
        self.value *= max(0.0, 1 + error * n_steps / self.horizon)

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = float(state["value"])


class FixedKLController:
    """A coefficient that stays."""

    def __init__(self, kl_coef: float):
        self.value = float(kl_coef)

    def update(self, current: float, n_steps: int) -> None:
        """Nothing changes."""

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = float(state["value"])


def kl_penalty(logprobs: Tensor, ref_logprobs: Tensor, kind: KLPenalty = "kl") -> Tensor:
    """The cost of a token, before the coefficient: (B, T) log-probs of the tokens -> (B, T), or of one sample (T).

    kl: log p - log q (k1); abs: its size; mse: half its square (k2). full: the KL itself, for log-probs of the whole
    vocabulary, (B, T, V) -> (B, T), or (T, V) -> (T).

    Raises:
        ValueError: another kind, or shapes that it cannot be computed from.
    """
    if kind not in get_args(KLPenalty):
        raise ValueError(f"kl_penalty = {kind!r} must be one of {', '.join(get_args(KLPenalty))}")
    wanted = (2, 3) if kind == "full" else (1, 2)
    if logprobs.shape != ref_logprobs.shape or logprobs.dim() not in wanted:
        raise ValueError(
            f"kl_penalty = {kind!r} compares log-probs of {wanted[0]} or {wanted[1]} dimensions and equal shapes, not "
            f"{tuple(logprobs.shape)} with {tuple(ref_logprobs.shape)}"
        )
    difference = logprobs - ref_logprobs
    if kind == "kl":
        return difference
    if kind == "abs":
        return difference.abs()
    if kind == "mse":
        return 0.5 * difference.square()
    # Where p is 0 its log-prob may be minus infinity: such a token adds nothing.
    return (logprobs.exp() * difference).where(logprobs > -float("inf"), 0.0).sum(-1)
