"""The files that a trainer writes: the policy with its card, here or on the hub, and a state to go on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from huggingface_hub import PyTorchModelHubMixin

from ppo import state
from ppo.card import write_card
from ppo.config import PPOConfig
from ppo.engine import Engine
from ppo.models.hub import push


class Kept(PyTorchModelHubMixin):
    """Saving and loading of a trainer. Of the mixin nothing is left but its name, which old code asks for."""

    accelerator: Accelerator
    config: PPOConfig
    current_step: int
    engine: Engine
    sampling: dict[str, Any]
    tokenizer: Any
    _unwrapped: Any

    def create_model_card(self, path: str | Path, model_name: str = "PPO model") -> None:
        """Write README.md into a folder. The hub is not asked for anything: it is written offline too."""
        write_card(Path(path), model_name, self.config, self.current_step, self.sampling)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:  # type: ignore[override]
        """The policy with its head, the tokenizer and a model card, as a folder that `from_pretrained` reads.

        Every rank calls it; the main process writes. `options` are those of the model's `save_pretrained`.

        Raises:
            TypeError: `push_to_hub`, which has a method.
        """
        if "push_to_hub" in options:
            raise TypeError("save_pretrained takes no push_to_hub: call push_to_hub(repo_id), which uploads the same")
        self._save_pretrained(Path(save_directory), **options)

    def _save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        whole = self.engine.whole_state()
        if self.accelerator.is_main_process:
            self._unwrapped.save_pretrained(str(save_directory), state_dict=whole, **options)
            self.tokenizer.save_pretrained(str(save_directory))
            self.create_model_card(save_directory)
        self.accelerator.wait_for_everyone()

    def push_to_hub(  # type: ignore[override]
        self, repo_id: str, commit_message: str = "Upload policy", **options: Any
    ) -> str | None:
        """Upload what `save_pretrained` writes; the address of the commit, on the main process. Every rank calls it.

        `options`: `private`, `token`, `revision`, `create_pr`.

        Raises:
            ConnectionError: the hub is switched off (HF_HUB_OFFLINE=1), cannot be reached, or refuses.
        """
        main = self.accelerator.is_main_process
        return push(self.save_pretrained, repo_id, commit_message, is_main_process=main, **options)

    def save_state(self, folder: str | Path) -> None:
        """Weights, optimizer, KL coefficient, running moments, order and random states, to go on from. Every rank.

        A state that is there already is replaced once the new one is whole. The reference is not in it: give the
        trainer that goes on the same `ref_model`. Nor is the place in the data loader.
        """
        state.save(self, Path(folder))

    def load_state(self, folder: str | Path) -> None:
        """Go on from `save_state`: the run continues as if it had not stopped. Every rank.

        Raises:
            ValueError: the folder holds no whole state, or that of a trainer with another reference, kind of
                optimizer or number of ranks; the message says which. Another configuration is warned of.
        """
        state.load(self, Path(folder))
