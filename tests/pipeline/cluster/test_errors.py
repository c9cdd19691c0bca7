"""What Ray wraps around an error is taken off again, so that the user reads the error itself."""

import signal

import pyarrow as pa
import pytest
import ray.data

from dpo.lm.weight_files import WeightsError
from dpo.text.render import TemplateMissing
from pipeline.cluster.errors import own_interrupts, translated_errors
from pipeline.cluster.items import here, on_ray
from pipeline.cluster.lost import Kernel, Losses, why_lost
from pipeline.cluster.pool import on_pool
from pipeline.config import Config
from pipeline.errors import InputError, RunError
from pipeline.place import Place
from tests.pipeline.files import config_file


@pytest.fixture(scope="module")
def local_ray():
    ray.init(address="local", num_cpus=2, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    context = ray.data.DataContext.get_current()
    context.raise_original_map_exception = True
    context.enable_progress_bars = False
    yield
    ray.shutdown()


def fail(item):
    """A stage's work, on an item that it cannot do."""
    if item["how"] == "ours":
        raise InputError("line 3 is no row")
    if item["how"] == "of a class":
        raise TemplateMissing("no template")
    if item["how"] == "disk":
        raise OSError(28, "No space left on device", "/full/file")
    yield pa.table({"share": [1 / item["zero"]]})


class Model:
    """What an actor of the pool holds."""

    def __init__(self, how):
        if how == "at start":
            raise WeightsError("no such model")

    def __call__(self, table):
        raise InputError("no such sequence")


@pytest.fixture
def place(local_ray, tmp_path):
    return Place.of(Config.load(config_file(tmp_path)))


FAILURES = [
    ("ours", InputError, "line 3 is no row"),
    ("of a class", TemplateMissing, "no template"),
    ("disk", RunError, "OSError: No space left on device"),
    ("theirs", RunError, "ZeroDivisionError: division by zero"),
]


@pytest.mark.ray
@pytest.mark.parametrize(("how", "kind", "message"), FAILURES)
def test_a_task_that_fails_says_what_its_work_said(place, how, kind, message):
    with pytest.raises(kind) as failed:
        list(on_ray(place)([{"how": how, "zero": 0}], fail))
    assert type(failed.value) is kind
    assert str(failed.value) == message


def test_without_ray_the_error_is_the_error_itself():
    for how, kind, _ in FAILURES[:2]:
        with pytest.raises(kind) as failed:
            list(here([{"how": how, "zero": 0}], fail))
        assert type(failed.value) is kind


@pytest.mark.ray
@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [("at work", InputError, "no such sequence"), ("at start", WeightsError, "no such model")],
)
def test_an_actor_that_fails_says_what_its_work_said(place, how, kind, message):
    """Also its constructor, which Ray would report as the text of a dead actor."""
    with pytest.raises(kind) as failed:
        list(on_pool(place, [{"k": 1}], Model, {"how": how}))
    assert type(failed.value) is kind
    assert str(failed.value) == message


@pytest.mark.ray
def test_ray_still_appends_the_advice_that_is_cut_off(place):
    """The one place where the text of a message decides: Ray leaves no other trace of what it added."""
    from pipeline.cluster.errors import ADVICE

    dataset = ray.data.from_items([1]).map_batches(broken)
    with pytest.raises(ValueError) as failed:
        dataset.materialize()
    assert "too bad" in str(failed.value) and ADVICE in str(failed.value)


def broken(batch):
    raise ValueError("too bad")


def test_ctrl_c_in_training_is_an_interrupt_and_the_handler_is_put_back():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), own_interrupts(), translated_errors():
        signal.signal(signal.SIGINT, lambda *_: None)  # as Ray Train does
        raise SystemExit(0)
    assert signal.getsignal(signal.SIGINT) is before


MEMORY = (
    "Task was killed due to the node running low on memory.\nMemory on the node (IP: 10.0.0.7, ID: ab12) was 22.95GB "
    "used / 23.54GB limit (0.975), which exceeds the memory usage threshold of 0.95. Ray killed 2 worker(s): (pid=1, "
    "actual memory used=0.70GB, worker ID=a), (pid=2, actual memory used=9.25GB, worker ID=b)\nRefer to the "
    "documentation on how to address the out of memory issue: https://docs.ray.io/"
)
SAID = (
    "memory ran out on node 10.0.0.7: 22.95 of 23.54 GiB were in use, of them 9.25 GiB by the process that Ray ended. "
    "Lower reference.batch_tokens. The same command goes on"
)


def chained(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ray.exceptions.OutOfMemoryError(MEMORY), SAID),
        (chained(RuntimeError("Connection closed by peer"), ray.exceptions.OutOfMemoryError(MEMORY)), SAID),
        (ray.exceptions.RayActorError(error_msg=MEMORY), SAID),
        (ray.exceptions.WorkerCrashedError(), "a process was killed by the system, most often for lack of memory"),
        (ray.exceptions.NodeDiedError("gone"), "a node was lost. Lower reference.batch_tokens."),
    ],
)
def test_a_process_that_was_ended_is_told_with_its_reason(error, said):
    with pytest.raises(RunError) as failed, translated_errors("reference.batch_tokens"):
        raise error
    assert said in str(failed.value) and str(failed.value).endswith("The same command goes on")


def test_a_process_that_the_kernel_ended_is_told_with_the_memory_that_there_was():
    before = Kernel.now()
    said = why_lost(ray.exceptions.WorkerCrashedError(), before._replace(kills=before.kills - 1))
    assert said is not None
    assert said.startswith(f"memory ran out on node {before.host}: the kernel ended a process, as all ")
    elsewhere = before._replace(host="elsewhere", kills=before.kills - 1)
    assert "most often for lack of memory" in (why_lost(ray.exceptions.WorkerCrashedError(), elsewhere) or "")


def test_what_a_worker_said_itself_comes_before_what_ray_says():
    with pytest.raises(RunError, match=r"^no checkpoint could be written$"), translated_errors():
        raise chained(ray.exceptions.WorkerCrashedError(), RunError("no checkpoint could be written"))


def test_ray_trains_controller_tells_of_a_loss(tmp_path):
    """It finds the reason in what Ray Train wraps around it, and no step that is not saved."""
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    (tmp_path / "checkpoints" / "001-00000040").mkdir(parents=True)
    (tmp_path / "checkpoints" / "001-00000040" / "manifest.json").touch()
    (tmp_path / "checkpoints" / "001-00000042").mkdir()
    losses = Losses(str(tmp_path / "note"), tmp_path / "status.txt", str(tmp_path / "checkpoints"), 2)
    lost = WorkerHealthCheckFailedError("A worker health check failed.", ray.exceptions.ActorDiedError())
    losses.after_exception(None, {0: RuntimeError("Connection closed by peer"), 1: lost})
    assert (tmp_path / "note").read_text() == (
        "a worker was lost: a process was killed by the system, most often for lack of memory (the kernel's log "
        "tells); going on from step 40, attempt 2 of 2"
    )
    (tmp_path / "note").unlink()
    losses.after_exception(None, {1: lost})
    assert not (tmp_path / "note").exists()  # the run ends, and says why
