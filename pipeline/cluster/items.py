"""The same work on many items: as tasks of Ray Data, or one after another in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from pipeline.place import Place
from pipeline.process import end_quickly

if TYPE_CHECKING:
    import ray.data

Item = dict[str, Any]
Work = Callable[..., Iterator[pa.Table]]


class Each(Protocol):
    """Runs `work(item, **options)` for every item; yields the rows of the tables that it yields."""

    def __call__(
        self, items: list[Item], work: Work, *, shared: dict[str, Any] | None = None, **options: Any
    ) -> Iterator[dict[str, Any]]:
        """
        Args:
            items: what differs between two calls of `work`, as plain values.
            work: a function of a module; a task imports what its module imports.
            shared: further options, too large to be handed to every task: one copy on every node.
            options: further keywords of `work`.
        """
        ...


def here(
    items: list[Item], work: Work, *, shared: dict[str, Any] | None = None, **options: Any
) -> Iterator[dict[str, Any]]:
    """Run the items one after another in this process, without Ray."""
    for item in items:
        for table in work(item, **options, **(shared or {})):
            yield from table.to_pylist()


def on_ray(place: Place) -> Each:
    """A runner that makes a Ray Data task of every item, in any order. It connects when it is first needed."""
    return partial(_on_ray, place)


def _on_ray(
    place: Place, items: list[Item], work: Work, *, shared: dict[str, Any] | None = None, **options: Any
) -> Iterator[dict[str, Any]]:
    if not items:
        return
    import ray  # a second, which a run that has nothing left to do saves

    from pipeline.cluster.connect import connect
    from pipeline.cluster.errors import translated_errors

    connect(place)
    references = {name: ray.put(value) for name, value in (shared or {}).items()}
    dataset = over(items).map_batches(
        _on_items,  # type: ignore[arg-type] - a generator is as good as a function, its stub does not say so
        fn_kwargs={"work": work, "options": options, "references": references},
        batch_size=1,
        batch_format="pyarrow",
    )
    with translated_errors():
        yield from dataset.iter_rows()


def import_ahead(place: Place, *modules: str) -> None:
    """Let a process of Ray import modules that work of a later call needs, while this process goes on."""
    import ray

    from pipeline.cluster.connect import connect

    connect(place)
    ray.remote(_import).options(num_cpus=1).remote(modules)


def _import(modules: tuple[str, ...]) -> None:
    for module in modules:
        import_module(module)


def _on_items(
    table: pa.Table, work: Work, options: dict[str, Any], references: dict[str, ray.ObjectRef]
) -> Iterator[pa.Table]:
    """The work of a task."""
    import ray

    end_quickly()
    shared = {name: ray.get(reference) for name, reference in references.items()}
    for item in table.to_pylist():
        yield from work(item, **options, **shared)


def over(items: list[Item]) -> ray.data.Dataset:
    """A Ray Data set of one block an item, so that each is a task of its own."""
    import ray.data

    return ray.data.from_items(items, override_num_blocks=max(1, len(items)))
