"""A pool of actors that hold one frozen model each: whoever asks such a model asks it through here."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import ray.data
from ray.util.annotations import RayDeprecationWarning

from pipeline.cluster.connect import connect
from pipeline.cluster.errors import translated_errors
from pipeline.cluster.items import Item, over
from pipeline.cluster.room import wait_for_actors
from pipeline.place import Place
from pipeline.process import end_quickly

RESTARTS = 8  # of an actor whose process or node is lost; one that always runs out of memory must end some time
Asked = Callable[..., Callable[[pa.Table], pa.Table]]  # a class: made of options, then called with tables


class Reading(NamedTuple):
    """How items become what the model is handed: `read` makes tables of them, which are cut into `rows`.

    The model is handed two tables at once, by two threads, so that it computes one while it writes the other.
    """

    read: Callable[[pa.Table], Iterator[pa.Table]]
    rows: int


def on_pool(
    place: Place,
    items: list[Item],
    asked: Asked,
    options: dict[str, Any],
    reading: Reading | None = None,
    in_order: bool = False,
) -> Iterator[dict[str, Any]]:
    """Ask a frozen model on the actors that [reference] describes; yields the rows of the tables that it answers with.

    Args:
        items: each is handed to the model as a table of one row, unless `reading` says otherwise.
        asked: the class that holds the model.
        options: its keywords.
        in_order: answer in the order of the items.

    Raises:
        InputError: as `asked` raised it, also from its constructor.
        RunError: anything else that went wrong on an actor.
    """
    if not items:
        return
    connect(place)
    wait_for_actors(place)
    config, rows = place.config.reference, 1
    dataset = over(items)
    if reading is not None:
        rows = reading.rows
        read: Any = reading.read
        dataset = dataset.map_batches(read, batch_size=1, batch_format="pyarrow")
        dataset = dataset.repartition(target_num_rows_per_block=rows)
    keywords: Any = {"max_restarts": RESTARTS, "max_task_retries": RESTARTS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)  # no other keyword bounds the restarts yet
        dataset = dataset.map_batches(
            _Actor,
            fn_constructor_kwargs={"asked": asked, "options": options},
            batch_size=rows,
            batch_format="pyarrow",
            compute=_actors(config.actors, len(items), reading),
            num_cpus=config.cpus_per_actor,
            num_gpus=config.gpus_per_actor or None,
            resources=config.resources or None,
            label_selector=config.labels or None,
            **keywords,
        )
    dataset.context.execution_options.preserve_order = in_order
    with translated_errors("reference.batch_tokens or reference.actors"):
        yield from dataset.iter_rows()


def _actors(most: int, items: int, reading: Reading | None) -> ray.data.ActorPoolStrategy:
    """As many actors as there are items; where items are read, all of them, each handed two tables at once."""
    if reading is None:
        return ray.data.ActorPoolStrategy(size=min(most, items))
    return ray.data.ActorPoolStrategy(size=most, enable_true_multi_threading=True, max_concurrent_calls_per_actor=2)


class _Actor:
    """Holds the model, or the error of making it: raised here, an error would lose its class on the way."""

    def __init__(self, asked: Asked, options: dict[str, Any]):
        end_quickly()
        self.made: Callable[[pa.Table], pa.Table] | Exception
        try:
            self.made = asked(**options)  # while other processes start to read what it will be asked
        except Exception as error:
            self.made = error

    def __call__(self, table: pa.Table) -> pa.Table:
        if isinstance(self.made, Exception):
            raise self.made
        return self.made(table)
