"""What Ray wraps around an error is taken off again, so that the user reads the error itself."""

import signal

import pyarrow as pa
import pytest
import ray.data

from pipeline.errors import InputError, RunError
from pipeline.stages.cluster import each_item, over, own_interrupts, translated_errors


@pytest.fixture(scope="module", autouse=True)
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
    if item["how"] == "disk":
        raise OSError(28, "No space left on device", "/full/file")
    yield pa.table({"share": [1 / item["zero"]]})


class Actor:
    def __init__(self, how):
        if how == "at start":
            raise InputError("no such model")

    def __call__(self, table):
        raise InputError("no such sequence")


@pytest.mark.ray
@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("ours", InputError, "line 3 is no row"),
        ("disk", RunError, "OSError: No space left on device"),
        ("theirs", RunError, "ZeroDivisionError: division by zero"),
    ],
)
def test_a_task_that_fails_says_what_its_work_said(how, kind, message):
    with pytest.raises(kind) as failed:
        list(each_item([{"how": how, "zero": 0}], fail))
    assert type(failed.value) is kind
    assert str(failed.value) == message


@pytest.mark.ray
@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [("at work", InputError, "no such sequence"), ("at start", RunError, "dpo.errors.InputError: no such model")],
)
def test_an_actor_that_fails_says_what_its_work_said(how, kind, message):
    pool = ray.data.ActorPoolStrategy(size=1)
    options = {"fn_constructor_kwargs": {"how": how}, "compute": pool, "batch_format": "pyarrow"}
    with pytest.raises(kind) as failed, translated_errors():
        list(over([{"k": 1}]).map_batches(Actor, **options).iter_rows())
    assert type(failed.value) is kind
    assert str(failed.value) == message


@pytest.mark.ray
def test_ctrl_c_in_training_is_an_interrupt_and_the_handler_is_put_back():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), own_interrupts(), translated_errors():
        signal.signal(signal.SIGINT, lambda *_: None)  # as Ray Train does
        raise SystemExit(0)
    assert signal.getsignal(signal.SIGINT) is before
