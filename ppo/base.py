"""What a PPO trainer has and keeps: policy, reference, optimizer, data, generation, checkpoints. Not the step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor
from torch.utils.data import DataLoader

from dpo.lm.models import freeze
from ppo import generation, state, tracking
from ppo.card import write_card
from ppo.checks import ValueModel, check_arguments, check_generation, vocabulary
from ppo.config import PPOConfig
from ppo.engine import Engine, make_accelerator, prepare_reference
from ppo.estimators import repeating
from ppo.forward import no_dropout_in_layers_
from ppo.given import check_tokens
from ppo.kl import AdaptiveKLController, FixedKLController
from ppo.models.headless import as_policies
from ppo.models.hub import push
from ppo.models.reference import create_reference_model
from ppo.models.wrapper import PreTrainedModelWrapper
from ppo.said import warn
from ppo.statistics import RunningMoments, summing
from ppo.update import Updates


class BaseTrainer:
    """Everything of a `PPOTrainer` but its step; the arguments are told there."""

    def __init__(
        self,
        config: PPOConfig,
        model: ValueModel,
        ref_model: ValueModel | None = None,
        tokenizer: Any = None,
        dataset: Any = None,
        optimizer: torch.optim.Optimizer | None = None,
        data_collator: Callable[[list[Any]], Any] | None = None,
        num_shared_layers: int | None = None,
        lr_scheduler: Any = None,
    ):
        model, ref_model = as_policies(config, model, ref_model)
        check_arguments(config, model, ref_model, tokenizer, dataset, optimizer, lr_scheduler)
        self.config, self.tokenizer, self.lr_scheduler = config, tokenizer, lr_scheduler
        self.accelerator = make_accelerator(config)
        set_seed(config.seed, device_specific=True)  # else all ranks would sample with the same random numbers
        self.is_encoder_decoder, self.is_peft_model = model.is_encoder_decoder, model.is_peft_model
        self._describe(config)
        if config.gradient_checkpointing and isinstance(model, PreTrainedModelWrapper):
            model.gradient_checkpointing_enable()
            no_dropout_in_layers_(model)
        reference = self._reference(model, ref_model, num_shared_layers)
        if optimizer is None:
            trained = [p for p in model.parameters() if p.requires_grad]
            optimizer = torch.optim.Adam(trained, lr=config.learning_rate)
        self.engine = Engine(self.accelerator, model, optimizer, config.mini_batch_size, config.max_grad_norm)
        self.model, self.optimizer, self.bare_optimizer = self.engine.model, self.engine.optimizer, optimizer
        self.ref_model = None if reference is None else prepare_reference(reference, self.accelerator)
        self._unwrapped: Any = model
        self.kl_ctl = (
            AdaptiveKLController(config.init_kl_coef, config.target, config.horizon)
            if config.adap_kl_ctrl
            else FixedKLController(config.init_kl_coef)
        )
        self._sum = summing(self.accelerator)
        self.running = RunningMoments(self._sum)
        self.updates = Updates(config, self.engine, self._sum)
        self.current_step = 0
        self.highest_score = -float("inf")
        self.sampling: dict[str, Any] = {}
        self._warned: set[str] = set()
        self.accelerator.register_for_checkpointing(state.State(self))
        self.dataset = dataset
        self.dataloader = None
        if dataset is None:
            warn("no dataset was given: dataloader is None, hand queries to generate yourself")
        else:
            self.dataloader = self.prepare_dataloader(dataset, data_collator)
        if config.log_with is not None:
            tracking.start(self.accelerator, config)

    def _describe(self, config: PPOConfig) -> None:
        """Write into the config what is only known now."""
        config.world_size = self.accelerator.num_processes
        config.global_batch_size = config.batch_size * config.world_size
        config.global_backward_batch_size = config.backward_batch_size * config.world_size
        config.is_encoder_decoder, config.is_peft_model = self.is_encoder_decoder, self.is_peft_model

    def _reference(self, model: ValueModel, given: ValueModel | None, num_shared_layers: int | None) -> Any:
        if given is not None:
            if num_shared_layers is not None:
                warn(f"num_shared_layers = {num_shared_layers} is ignored: ref_model is given")
            return freeze(given)
        if self.is_peft_model:
            return None
        return create_reference_model(model, num_shared_layers)

    @property
    def _vocabulary(self) -> int:
        return vocabulary(self._unwrapped)

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def is_distributed(self) -> bool:
        """Whether there are several ranks, of whatever kind."""
        return self.accelerator.num_processes > 1

    # Data and generation

    def prepare_dataloader(self, dataset: Any, data_collator: Callable[[list[Any]], Any] | None = None) -> Any:
        """Shuffled batches of `config.batch_size` samples; a last, smaller one is left out.

        With `answers_per_prompt` = n each sample stands n times in its batch, one behind the other.
        With `remove_unused_columns`, a data set of Hugging Face keeps only the columns that the model's forward takes,
        and `label`, `query`, `response`.
        """
        if self.config.remove_unused_columns and hasattr(dataset, "remove_columns"):
            kept = {*inspect.signature(self._unwrapped.forward).parameters, "label", "query", "response"}
            dataset = dataset.remove_columns([name for name in dataset.column_names if name not in kept])
        loader = DataLoader(
            dataset,
            batch_size=self.config.prompts,
            collate_fn=repeating(data_collator, self.config.answers_per_prompt),
            shuffle=len(dataset) > 0,  # torch cannot shuffle nothing
            drop_last=True,
        )
        if len(dataset) < self.config.prompts:
            warn(f"the data set has {len(dataset)} samples, batch_size is {self.config.batch_size}: there is no batch")
        return self.accelerator.prepare_data_loader(loader)

    def generate(
        self,
        query_tensor: Tensor | list[Tensor],
        length_sampler: Callable[[], int] | None = None,
        batch_size: int = 4,
        return_prompt: bool = True,
        generate_ref_response: bool = False,
        **generation_kwargs: Any,
    ) -> Any:
        """Responses of the policy; with `generate_ref_response` the pair (its responses, the reference's).

        A tensor (length,) gives a tensor (1, length); a list gives a list of tensors (length,), `batch_size` at a
        time. A response ends with its first generated end token. Of a decoder the query stands in front, unless
        `return_prompt` is False. `length_sampler` gives each batch its `max_new_tokens`. Other keywords go to the
        model's `generate`. Dropout is off. What makes the samples off-policy (top_k, top_p, another temperature than
        `config.logit_temperature`) is warned of once, and noted in `sampling`.

        Raises:
            ValueError: a query that is no tensor of one dimension, or holds what is no token of the model.
        """
        queries = query_tensor if isinstance(query_tensor, (list, tuple)) else [query_tensor]
        for i, query in enumerate(queries):
            check_tokens(f"query {i}", query, self._vocabulary)
        check_generation(batch_size, length_sampler, generation_kwargs)
        self._note_sampling(generation_kwargs)
        if self.engine.stage == 3:
            generation_kwargs = generation_kwargs | {"synced_gpus": True}
        ends = generation.end_ids(self._unwrapped, self.tokenizer, generation_kwargs)

        def respond(model: Any) -> Any:
            found = generation.respond(
                model,
                [query.to(self.device) for query in queries],
                batch_size,
                self.tokenizer.pad_token_id,
                ends,
                length_sampler,
                return_prompt,
                self.config.pad_max_input_len if self.config.pad_for_acceleration else None,
                **generation_kwargs,
            )
            return found if isinstance(query_tensor, (list, tuple)) else found[0][None]

        responses = respond(self._unwrapped)
        if not generate_ref_response:
            return responses
        with self.reference() as reference:
            return responses, respond(self.accelerator.unwrap_model(reference))

    def _note_sampling(self, options: dict[str, Any]) -> None:
        self.sampling = {k: v for k, v in options.items() if isinstance(v, (int, float, str, bool))}
        for phrase in generation.off_policy(self._unwrapped, options, self.config.logit_temperature):
            self._warn_once(
                f"responses are sampled with {phrase}: log-probs are those of the whole distribution at "
                f"temperature {self.config.logit_temperature}, so KL and ratios will be off"
            )

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warn(message)

    @contextmanager
    def reference(self) -> Iterator[Any]:
        """The reference model, or the policy with its adapters really disabled."""
        if self.ref_model is not None:
            yield self.ref_model
            return
        with self._unwrapped.pretrained_model.disable_adapter():
            yield self.model

    # What is kept

    def create_model_card(self, path: str | Path, model_name: str = "PPO model") -> None:
        """Write README.md into a folder. The hub is not asked for anything: it is written offline too."""
        write_card(Path(path), model_name, self.config, self.current_step, self.sampling)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """The policy with its head, the tokenizer and a model card, as a folder that `from_pretrained` reads.

        Every rank calls it; the main process writes.
        """
        whole = self.engine.whole_state()
        if self.accelerator.is_main_process:
            self._unwrapped.save_pretrained(str(save_directory), state_dict=whole, **options)
            self.tokenizer.save_pretrained(str(save_directory))
            self.create_model_card(save_directory)
        self.accelerator.wait_for_everyone()

    def push_to_hub(self, repo_id: str, commit_message: str = "Upload policy", **options: Any) -> str | None:
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
