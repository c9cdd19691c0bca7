"""Room for the processes of a stage, on a cluster whose nodes may still have to start.

A placement group asks for it: the autoscaler starts nodes for one that does not fit. Once there is room the group is
given back, and Ray Data or Ray Train takes the room for itself.
"""

from __future__ import annotations

import time

from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup, get_placement_group

from pipeline.cluster.autoscaler import runs, start_seconds
from pipeline.cluster.capacity import Request, listed, nodes_there, requests
from pipeline.cluster.connect import joined
from pipeline.cluster.gpus import check_gpus
from pipeline.errors import InputError
from pipeline.place import Place

AHEAD = "ray-align: the nodes of training"
AHEAD_SECONDS = 600.0  # before scoring ends; a node with GPUs takes up to ten minutes to come
POLL_SECONDS = 0.5


def wait_for_actors(place: Place) -> None:
    """Wait until an actor of [reference] has room. All are asked for, so that their nodes start together.

    Raises:
        InputError: the room did not come within cluster.start_minutes, or a node that came cannot do the work.
    """
    actors, _ = requests(place.config)
    if joined(place.config) is not None:
        _wait(place, actors, [_ask(actors, 1) for _ in range(actors.number)])
        check_gpus(place)


def wait_for_workers(place: Place) -> None:
    """Wait until the least number of workers that [cluster] asks for has room at one time.

    Raises:
        InputError: the room did not come within cluster.start_minutes, or a node that came cannot do the work.
    """
    _, workers = requests(place.config)
    if joined(place.config) is not None:
        _wait(place, workers, [_asked_ahead() or _ask(workers, workers.number)])
        check_gpus(place)


class Ahead:
    """Asks for the nodes of training while scoring still runs, early enough for them to start."""

    def __init__(self, place: Place):
        scoring, training = requests(place.config)
        # Where both may run on the same nodes, room that is kept for training could be missing in scoring.
        apart = set(training.each) - set(scoring.each) and set(scoring.each) - set(training.each)
        self._wanted = training if apart and joined(place.config) is not None else None
        self._began = time.monotonic()

    def look(self, done: int, of: int) -> None:
        """Ask, if what is left of the scoring takes no longer than a node takes to start."""
        left = (time.monotonic() - self._began) / done * (of - done)
        if self._wanted is None or left > AHEAD_SECONDS:
            return
        if runs() and _asked_ahead() is None:
            _ask(self._wanted, self._wanted.number, AHEAD)
        self._wanted = None


def _ask(request: Request, number: int, name: str = "") -> PlacementGroup:
    each = {resource: amount for resource, amount in request.each.items() if amount}
    labels = [request.labels] * number if request.labels else None
    return placement_group([each] * number, name=name, bundle_label_selector=labels)  # type: ignore[arg-type]


def _asked_ahead() -> PlacementGroup | None:
    try:
        return get_placement_group(AHEAD)
    except ValueError:
        return None


def _wait(place: Place, request: Request, asked: list[PlacementGroup]) -> None:
    """Wait until one of the groups has its room; then give all of them back."""
    seconds = start_seconds(place.config)
    end = time.monotonic() + seconds
    try:
        while not any(placement_group_table(group)["state"] == "CREATED" for group in asked):
            if time.monotonic() > end:
                raise InputError(
                    f"{request.text}: no room within cluster.start_minutes = {seconds / 60:g}. The nodes that are "
                    f"there: {listed(nodes_there())}. `ray status` says what the cluster waits for; raise "
                    "cluster.start_minutes, ask for less, or give the cluster such nodes."
                )
            place.terminal.live("ray", f"waiting for nodes: {request.text}")
            time.sleep(POLL_SECONDS)
    finally:
        for group in asked:
            remove_placement_group(group)
