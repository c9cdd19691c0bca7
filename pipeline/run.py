"""The whole program: seven stages, each a function from artifacts to an artifact."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline.config import Config
from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.place import Place

# Ray, torch and transformers take seconds to load. They are imported when a run begins, so that --help, `config` and a
# misspelt key answer at once.
STAGES = ("prepare", "sft", "score", "order", "train", "evaluate", "export")


def stages(place: Place) -> Iterator[str]:
    """The line. Yields each stage's name when it is done; a stage that was done before costs a look at its manifest."""
    from pipeline.report import draw_curves, show_answers
    from pipeline.stages.evaluate import evaluate
    from pipeline.stages.export import export
    from pipeline.stages.order import order
    from pipeline.stages.prepare import prepare
    from pipeline.stages.score import score
    from pipeline.stages.sft import sft
    from pipeline.stages.train import train

    with place.stage("prepare"):
        tokens = prepare(place)
    yield "prepare"
    with place.stage("sft"):
        start = sft(place, tokens)
    yield "sft"
    with place.stage("score"):
        reference = score(place, tokens, start)
    yield "score"
    with place.stage("order"):
        epochs = order(place, tokens, reference)
    yield "order"
    with place.stage("train"):
        weights = train(place, start, epochs)
    yield "train"
    with place.stage("evaluate"):
        evaluation = evaluate(place, tokens, epochs, start, weights)
    yield "evaluate"
    with place.stage("export"):
        export(place, weights, reference, evaluation)
    yield "export"
    draw_curves(place.run_dir, place.config.run.name)
    if evaluation.answers is not None and evaluation.folder is not None:
        show_answers(place, evaluation.folder)


def run(config: Config, until: str = "export") -> dict[str, Any]:
    """Run the stages up to and including `until`; returns what `summary.json` holds.

    Raises:
        InputError: something in the configuration or the data is the user's to mend.
        RunError: a stage failed otherwise.
    """
    if until not in STAGES:
        raise ValueError(f"no stage {until!r}; there are {', '.join(STAGES)}")
    from pipeline.place import Place
    from pipeline.report import write_summary
    from pipeline.stages.cluster import connect, disconnect, joined
    from pipeline.stages.nodes import check_nodes
    from pipeline.stages.start import preflight

    place = Place(config)
    preflight(place)
    place.open()
    try:
        if joined(config) is not None:
            connect(place)
            check_nodes(place)
        for stage in stages(place):
            if stage == until != STAGES[-1]:
                break
    except InputError:
        place.release()
        raise
    finally:
        disconnect()
    return write_summary(place)
