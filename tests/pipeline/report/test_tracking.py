"""Trackers get every metric once and in order, also across a kill and a restart, and never stop a run."""

import json
import struct
import time
from contextlib import suppress

import pytest

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.report import trackers, tracking
from pipeline.report.tracking import named, tracked
from tests.pipeline.files import config_file

TRAINED = [
    {"step": step, "loss": 0.7 - step / 100, "rewards/margins": step / 10, "perf/x": 1.0} for step in range(1, 9)
]
EVALUATED = {"step": 4, "eval/loss": 0.6, "eval/rewards/accuracies": 0.75}


class Recorder:
    """A tracker of our own: what each run was sent."""

    runs: dict = {}  # noqa: RUF012

    def __init__(self, identity, name, config, folder):
        self.mine = self.runs.setdefault(identity, {"name": name, "config": config, "rows": [], "ends": []})

    def log(self, step, metrics):
        self.mine["rows"].append((step, metrics))

    def finish(self, files, summary, failed):
        self.mine["ends"].append(([path.name for path in files], summary, failed))


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr(Recorder, "runs", {})
    monkeypatch.setitem(trackers.TRACKERS, "wandb", Recorder)
    monkeypatch.setattr(tracking, "LOOK_SECONDS", 0.05)
    return Recorder


def write(folder, rows):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def config(folder, *names):
    return Config.load(config_file(folder), [f"report.trackers={json.dumps(names)}", "run.name=mine"])


def attempt(folder, rows, *names, anew=False, killed=False, looks=0.3):
    """One try of a run, which writes rows bit by bit; returns what was said."""
    said = []
    with suppress(KeyboardInterrupt), tracked(config(folder, *names), folder, said.append, anew):
        for end in range(1, len(rows) + 1):
            write(folder, rows[:end])
            time.sleep(looks / len(rows))
        if killed:
            raise KeyboardInterrupt
    return said


def test_every_metric_comes_once_and_in_order_across_a_restart(recorder, tmp_path):
    """The second try begins at the checkpoint behind step 4, and writes steps 5 and 6 again."""
    first = [*TRAINED[:4], EVALUATED, *TRAINED[4:6]]
    assert attempt(tmp_path, first, "wandb", anew=True, killed=True) == []
    (tmp_path / "summary.json").write_text('{"steps": 8, "loss_last": 0.62, "seconds": {}}')
    assert attempt(tmp_path, [*TRAINED[:4], EVALUATED, *TRAINED[4:], {**EVALUATED, "step": 8}], "wandb") == []
    (run,) = recorder.runs.values()
    steps = [(step, next(iter(metrics)).partition("/")[0]) for step, metrics in run["rows"]]
    train = [(step, "train") for step in range(1, 9)]
    assert steps == [*train[:4], (4, "eval"), *train[4:], (8, "eval")]
    assert run["rows"][0][1] == {"train/loss": 0.69, "train/rewards/margins": 0.1, "perf/x": 1.0}
    assert [end[2] for end in run["ends"]] == [True, False]
    assert run["ends"][1] == (["summary.json"], {"steps": 8, "loss_last": 0.62}, False)
    assert run["name"] == "mine" and run["config"]["loss.beta"] == 0.1


def test_a_run_that_begins_anew_is_another_run_of_the_tracker(recorder, tmp_path):
    attempt(tmp_path, TRAINED, "wandb", anew=True)
    attempt(tmp_path, TRAINED, "wandb", anew=True)
    assert [len(run["rows"]) for run in recorder.runs.values()] == [8, 8]


def test_a_finished_run_that_is_given_again_sends_nothing(recorder, tmp_path):
    attempt(tmp_path, TRAINED, "wandb", anew=True)
    attempt(tmp_path, TRAINED, "wandb")
    assert [len(run["rows"]) for run in recorder.runs.values()] == [8]


@pytest.mark.parametrize("where", ["__init__", "log", "finish"])
def test_a_tracker_that_fails_is_said_once_and_stops_nothing(recorder, tmp_path, monkeypatch, where):
    def fail(*_):
        raise OSError("the network is down")

    monkeypatch.setattr(recorder, where, fail)
    said = attempt(tmp_path, TRAINED, "wandb", anew=True)
    assert said == ["wandb: the network is down; the run goes on without it, and metrics.jsonl has all"]


def test_what_was_not_sent_for_a_failure_is_sent_by_the_next_try(recorder, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("down")

    with monkeypatch.context() as patched:
        patched.setattr(recorder, "log", fail)
        attempt(tmp_path, TRAINED[:3], "wandb", anew=True)
    attempt(tmp_path, TRAINED, "wandb")
    (run,) = recorder.runs.values()
    assert [step for step, _ in run["rows"]] == list(range(1, 9))


def test_a_client_that_hangs_does_not_hold_up_the_end(recorder, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "END_SECONDS", 0.2)
    monkeypatch.setattr(recorder, "finish", lambda *_: time.sleep(3))
    began = time.monotonic()
    (said,) = attempt(tmp_path, TRAINED, "wandb", anew=True)
    assert "not everything was sent within 0.2 s" in said and time.monotonic() - began < 2


def test_numbers_that_are_not_finite_are_left_out():
    assert named({"step": 1, "loss": None, "grad_norm": 2.0, "eval/x": 1}) == {"train/grad_norm": 2.0, "eval/x": 1.0}


def test_a_client_that_is_not_installed_is_told_before_anything_runs(monkeypatch):
    monkeypatch.setitem(trackers.TRACKERS, "no_such_client", Recorder)
    with pytest.raises(ConfigError, match=r'is not installed: pip install "ray-align\[no_such_client\]"'):
        trackers.refuse_missing(["tensorboard", "no_such_client"])


def test_without_trackers_no_file_is_written(tmp_path):
    attempt(tmp_path, TRAINED, "tensorboard", anew=True)
    assert not (tmp_path / "trackers.json").exists()


# Their own clients, where they are installed

FIRST, SECOND = [*TRAINED[:4], EVALUATED, *TRAINED[4:6]], [*TRAINED[:4], EVALUATED, *TRAINED[4:]]
LOSSES = [(row["step"], row["loss"]) for row in TRAINED]


def two_tries(folder, name):
    assert attempt(folder, FIRST, name, anew=True, killed=True, looks=2.0) == []
    assert attempt(folder, SECOND, name, looks=2.0) == []


@pytest.mark.slow
def test_mlflow_reads_every_metric_back(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    two_tries(tmp_path, "mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("ray-align").experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == LOSSES
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "eval/loss")] == [4]
    assert run.data.params["loss.beta"] == "0.1" and run.info.status == "FINISHED"


@pytest.mark.slow
def test_trackio_reads_every_metric_back(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    two_tries(tmp_path, "trackio")
    storage = trackio.SQLiteStorage
    (run,) = storage.get_runs("ray-align")
    rows = storage.get_logs("ray-align", run=run)
    assert [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row] == LOSSES
    assert [row["step"] for row in rows if "eval/loss" in row] == [4]


@pytest.mark.slow
def test_wandb_reads_every_metric_back(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    for key, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(key, value)
    two_tries(tmp_path, "wandb")
    found, identities = [], set()
    for path in sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb")):
        for data in records_of(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            identities |= {record.run.run_id} - {""}
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            if "train/loss" in items:
                found.append((record.history.step.num, items["train/loss"]))
    assert found == LOSSES
    assert len(identities) == 1  # the second try goes on with the run of the first


def records_of(data):
    """The records of a .wandb file: after 7 bytes, blocks of 32 KiB of parts with checksum, length and kind."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        if at % 32768 > 32768 - 7:
            at += 32768 - at % 32768
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""
