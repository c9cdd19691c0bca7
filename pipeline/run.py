"""The whole program: seven stages, each a function from artifacts to an artifact."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.errors import RunError

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.place import Place
    from pipeline.record import Record
    from pipeline.report.run_page import Asked
    from pipeline.stages.preflight import Inputs
    from pipeline.stages.score import Scores
    from pipeline.store.artifacts import Artifact

# What takes long to import is imported when a run begins, so that --help, `config` and a misspelt key answer at once.
STAGES = ("prepare", "sft", "score", "order", "train", "evaluate", "export")


def stages(place: Place, inputs: Inputs, record: Record, until: str) -> Iterator[str]:
    """The line. Yields each stage's name when it is done; a stage that was done before costs a look at its manifest.

    Args:
        until: the last stage that the caller lets run.
    """
    from pipeline.models.start import InitialPolicy

    with InitialPolicy(place, inputs.policy, len(inputs.tokenizer), inputs.adapter) as policy:
        # Ray is imported and started while the policy is made.
        from pipeline.cluster.connect import connect, leave
        from pipeline.cluster.items import here, on_ray
        from pipeline.data.sources import few_bytes
        from pipeline.process import Process
        from pipeline.report.answers import show_answers
        from pipeline.report.run_page import write_report
        from pipeline.stages.evaluate import Trained, evaluate
        from pipeline.stages.export import export
        from pipeline.stages.order import order
        from pipeline.stages.prepare import prepare
        from pipeline.stages.score import score
        from pipeline.stages.sft import sft
        from pipeline.stages.train import train

        each = on_ray(place)
        tokens = record.stage(prepare, place, inputs, here if few_bytes(inputs.files) else each)
        yield "prepare"
        if policy.making:
            connect(place)
        start = record.stage(sft, place, inputs, each, policy, tokens)
        yield "sft"
    trains = STAGES.index(until) >= STAGES.index("train")
    reference = record.stage(score, place, inputs, tokens, start, trains)
    yield "score"
    epochs = record.stage(order, place, inputs, each, tokens, reference)
    yield "order"
    trained = record.stage(train, place, inputs, tokens, start, epochs)
    yield "train"
    policies = Trained(before=start, after=trained)
    evaluation = record.stage(evaluate, place, inputs, each, tokens, epochs, policies, record.counts["weights_step"])
    yield "evaluate"
    reporting = Process(write_report, _asked(place, inputs, tokens, record, reference))  # beside the export
    left = partial(leave, place)
    record.stage(export, place, inputs, trained, reference, evaluation, record.counts, meanwhile=left)
    yield "export"
    place.terminal.note(f"report: {reporting.result()}")
    if evaluation.answers is not None:
        show_answers(place.terminal.console, evaluation.answers_file, place.config.report.show_answers)


def _asked(place: Place, inputs: Inputs, tokens: Artifact, record: Record, scores: Scores | None) -> Asked:
    """Collect the inputs of this run's report."""
    from pipeline.report.run_page import Asked, facts_of

    return Asked(
        place.run_dir,
        place.config.run.name,
        tokens.paths("eval/"),
        [file.path for file in inputs.files],
        inputs.tokenizer,
        place.config.train.max_grad_norm,
        facts_of(place.config, record.counts, record.seconds, scores.identity if scores is not None else None),
    )


def run(config: Config, until: str = "export", restart: bool = False, keeps_ray: bool = False) -> dict[str, Any]:
    """Run the stages up to and including `until`; returns what `summary.json` holds.

    Args:
        restart: begin anew under a name that was used before; its export is kept under another one.
        keeps_ray: stay connected at the end, for another run of this program.

    Raises:
        InputError: something in the configuration or the data is the user's to mend.
        RunError: a stage failed otherwise.
    """
    if until not in STAGES:
        raise ValueError(f"no stage {until!r}; there are {', '.join(STAGES)}")
    from pipeline.claim import refuse_taken

    refuse_taken(config)  # before anything takes time
    from pipeline.cluster.connect import leaving
    from pipeline.cluster.machine import settled
    from pipeline.place import Place

    with leaving(keeps_ray):
        config = settled(config, ask_cluster=True)
        place = Place.of(config, until, keeps_ray)
        with place.terminal.showing(STAGES[: STAGES.index(until) + 1], config.report.ray_logs):
            return _claimed(place, until, restart)


def _claimed(place: Place, until: str, restart: bool) -> dict[str, Any]:
    """Look at what is given, and run under the name that the run claims."""
    from pipeline.claim import claim, has_made
    from pipeline.cluster.connect import leaving, logs_folder
    from pipeline.cluster.machine import tell_gpus
    from pipeline.record import Record
    from pipeline.report.summary import write_summary
    from pipeline.report.trackers import refuse_missing
    from pipeline.report.tracking import tracked
    from pipeline.stages.preflight import preflight, warn_of_memory

    refuse_missing(place.config.report.trackers)
    tell_gpus(place)
    inputs = preflight(place)
    warn_of_memory(place, inputs)
    with claim(place.config, place.run_dir, place.workspace, place.terminal.note, restart) as lease:
        anew = not has_made(place.run_dir)
        record = Record.of(place.run_dir, anew)
        with tracked(place.config, place.run_dir, place.terminal.note, anew):
            with leaving(place.keeps_ray):  # workers end before another command may come
                try:
                    _run(replace(place, lease=lease), inputs, record, until)
                except RunError as error:
                    error.logs = logs_folder()  # which nobody can ask for later
                    raise
            return write_summary(place.run_dir, record.counts, record.seconds, record.peak_bytes)


def _run(place: Place, inputs: Inputs, record: Record, until: str) -> None:
    """Run the stages of a run that this process owns."""
    from pipeline.cluster.connect import connect, joined
    from pipeline.stages.contents import same_contents

    same_contents(place, inputs)
    if joined(place.config) is not None:
        from pipeline.cluster.gpus import check_gpus
        from pipeline.cluster.nodes import check_nodes

        connect(place)
        check_nodes([place.run_dir, place.workspace], inputs.paths)
        check_gpus(place)  # those that come later are looked at before they are used
    for stage in stages(place, inputs, record, until):
        if stage == until != STAGES[-1]:
            break
