"""The parts that a PPO trainer has: policy, reference, optimizer, data, generation. Not the step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from accelerate.scheduler import AcceleratedScheduler
from accelerate.utils import set_seed
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import DataCollatorForLanguageModeling

from dpo.lm.models import freeze
from ppo import generation, state, tracking
from ppo.checks import ValueModel, check_arguments, check_generation, padding_token, vocabulary
from ppo.config import PPOConfig
from ppo.engine import Engine, make_accelerator, prepare_reference
from ppo.estimators import repeating
from ppo.forward import no_dropout_in_layers_
from ppo.given import check_tokens
from ppo.kept import Kept
from ppo.kl import AdaptiveKLController, FixedKLController
from ppo.models.headless import as_policies
from ppo.models.reference import create_reference_model
from ppo.models.wrapper import PreTrainedModelWrapper
from ppo.said import warn
from ppo.statistics import RunningMoments, summing
from ppo.update import Updates


class BaseTrainer(Kept):
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
        training_data_collator: Callable[[list[Any]], Any] | None = None,
    ):
        model, ref_model = as_policies(config, model, ref_model)
        check_arguments(config, model, ref_model, tokenizer, dataset, optimizer, lr_scheduler)
        self.config, self.tokenizer = config, tokenizer
        self.accelerator = make_accelerator(config)
        set_seed(config.seed, device_specific=True)  # else all ranks would sample with the same random numbers
        self.is_encoder_decoder, self.is_peft_model = model.is_encoder_decoder, model.is_peft_model
        self._unwrapped: Any = model
        self._describe(config)
        if config.gradient_checkpointing and isinstance(model, PreTrainedModelWrapper):
            model.gradient_checkpointing_enable()
            no_dropout_in_layers_(model)
        reference = self._reference(model, ref_model, num_shared_layers)
        self._optimise(model, optimizer, lr_scheduler)
        prepare = self._prepare_deepspeed if self.engine.deepspeed else self._placed
        self.ref_model: Any = None if reference is None else prepare(reference)
        self.optional_peft_ctx: Any = model.pretrained_model.disable_adapter if self.is_peft_model else nullcontext
        self.current_device = self.accelerator.device
        self._padding = DataCollatorForLanguageModeling(tokenizer, mlm=False)
        self.data_collator: Any = training_data_collator or self._padding
        self.current_step = 0
        self.highest_score = -float("inf")
        self.sampling: dict[str, Any] = {}
        self._warned: set[str] = set()
        self.accelerator.register_for_checkpointing(state.State(self))
        self.dataset, self.dataloader, self._signature_columns = dataset, None, None
        if dataset is None:
            warn("no dataset was given: dataloader is None, hand queries to generate yourself")
        else:
            loader = self.prepare_dataloader(dataset, data_collator)
            self.dataloader = self.accelerator.prepare_data_loader(loader) if isinstance(loader, DataLoader) else loader
        if config.log_with is not None:
            tracking.start(self.accelerator, config)

    def _optimise(self, model: ValueModel, optimizer: torch.optim.Optimizer | None, lr_scheduler: Any) -> None:
        """Make whatever changes in a step: weights, KL coefficient, running moments, learning rate."""
        config = self.config
        if optimizer is None:
            trained = [p for p in model.parameters() if p.requires_grad]
            optimizer = torch.optim.Adam(trained, lr=config.learning_rate)
        self.engine = Engine(self.accelerator, model, optimizer, config.mini_batch_size, config.max_grad_norm or None)
        self.model, self.optimizer, self.bare_optimizer = self.engine.model, self.engine.optimizer, optimizer
        self.model_params = self.engine.parameters
        self.lr_scheduler: Any = None
        if lr_scheduler is not None:  # with the optimizer, accelerate would step once for every rank
            self.lr_scheduler = AcceleratedScheduler(lr_scheduler, self.optimizer, step_with_optimizer=False)
        self.kl_ctl = (
            AdaptiveKLController(config.init_kl_coef, config.target, config.horizon)
            if config.adap_kl_ctrl
            else FixedKLController(config.init_kl_coef)
        )
        self._sum = summing(self.accelerator)
        self.running = RunningMoments(self._sum)
        self.updates = Updates(config, self.engine, self._sum)

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
        if hasattr(dataset, "remove_columns"):
            dataset = self._remove_unused_columns(dataset)
        if len(dataset) < self.config.prompts:
            warn(f"the data set has {len(dataset)} samples, batch_size is {self.config.batch_size}: there is no batch")
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=self.config.prompts,
            collate_fn=repeating(data_collator, self.config.answers_per_prompt),
            shuffle=len(dataset) > 0,  # torch cannot shuffle nothing
            drop_last=True,
        )
        return self.accelerator.prepare_data_loader(loader)

    def _remove_unused_columns(self, dataset: Any) -> Any:
        if not self.config.remove_unused_columns:
            return dataset
        self._set_signature_columns_if_needed()
        kept = self._signature_columns or []
        return dataset.remove_columns([name for name in dataset.column_names if name not in kept])

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            own = inspect.signature(self._unwrapped.forward).parameters
            self._signature_columns: list[str] | None = [*own, "label", "query", "response"]

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
        model's `generate`, `generation_config` among them. Dropout is off. What makes the samples off-policy (top_k,
        top_p, another temperature than `config.logit_temperature`) is warned of once, and noted in `sampling`.

        Raises:
            ValueError: a query that is no tensor of one dimension, or holds what is no token of the model; a tokenizer
                without padding token.
        """
        listed = isinstance(query_tensor, (list, tuple))
        queries = list(query_tensor) if listed else [query_tensor]
        for i, query in enumerate(queries):
            check_tokens(f"query {i}", query, self._vocabulary)
        said = generation.merged(generation_kwargs)
        check_generation(batch_size, length_sampler, said)
        self._note_sampling(said)
        if self.engine.stage == 3:
            generation_kwargs = generation_kwargs | {"synced_gpus": True}
        # As in TRL, only a list goes through a method of its own, and also ends with the tokenizer's end token.
        respond = self._generate_batched if listed else partial(BaseTrainer._generate_batched, self, cut_at_eos=False)
        asked = {"length_sampler": length_sampler, "batch_size": batch_size, "return_prompt": return_prompt}

        def answered(model: Any) -> Any:
            found = respond(model, queries, **asked, **generation_kwargs)
            return found if listed else found[0][None]

        responses = answered(self.model)
        if not generate_ref_response:
            return responses
        with self.reference() as reference:
            return responses, answered(reference)

    def _generate_batched(
        self,
        model: Any,
        query_tensors: list[Tensor],
        length_sampler: Callable[[], int] | None = None,
        batch_size: int = 4,
        return_prompt: bool = True,
        pad_to_multiple_of: int | None = None,
        remove_padding: bool = True,
        cut_at_eos: bool = True,
        **generation_kwargs: Any,
    ) -> list[Tensor]:
        """Responses of one model to queries of different lengths; without `remove_padding` not cut at an end token.

        `cut_at_eos`: whether the tokenizer's end token ends one although `eos_token_id` in the keywords is another.
        """
        unwrapped: Any = self.accelerator.unwrap_model(model)
        ends = generation.end_ids(unwrapped, self.tokenizer, generation.merged(generation_kwargs))
        if cut_at_eos and self.tokenizer.eos_token_id is not None:
            ends = [*ends, self.tokenizer.eos_token_id]
        return generation.respond(
            unwrapped,
            [query.to(self.current_device) for query in query_tensors],
            batch_size,
            padding_token(self.tokenizer, self._vocabulary),
            ends if remove_padding else [],
            length_sampler,
            return_prompt,
            self.config.pad_max_input_len if self.config.pad_for_acceleration else None,
            pad_to_multiple_of,
            **generation_kwargs,
        )

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
        with self.optional_peft_ctx():
            yield self.model if self.ref_model is None else self.ref_model

    def _placed(self, model: Any) -> Any:
        return prepare_reference(model, self.accelerator)

    def _prepare_deepspeed(self, model: Any) -> Any:
        """Under DeepSpeed the reference as this rank uses it: in an engine of its own, if it was loaded in parts."""
        return self._placed(model)
