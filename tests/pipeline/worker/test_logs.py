import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.worker.logs import MetricLog, append_line


def steps(folder):
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def write(folder, first, last, after_step=0, tensorboard=False):
    log = MetricLog(folder, tensorboard, after_step)
    for step in range(first, last + 1):
        log.write({"step": step, "loss": 1 / step, "rewards/margins": float(step)})
    log.close()


def test_a_row_a_step(tmp_path):
    write(tmp_path, 1, 3)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == [{"step": step, "loss": 1 / step, "rewards/margins": float(step)} for step in (1, 2, 3)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]  # no TensorBoard unless asked for


def test_steps_after_the_checkpoint_are_written_anew(tmp_path):
    write(tmp_path, 1, 7)
    write(tmp_path, 5, 6, after_step=4)
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_a_fresh_start_keeps_nothing(tmp_path):
    write(tmp_path, 1, 7)
    write(tmp_path, 1, 2)
    assert steps(tmp_path) == [1, 2]


def test_half_a_row_of_a_killed_run_goes(tmp_path):
    write(tmp_path, 1, 3)
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 4, "lo')
    write(tmp_path, 4, 5, after_step=3)
    assert steps(tmp_path) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "damage", [b'{"step": 2, "loss": 0>5}', b'{"stap": 2}', b"[2]", b"\xff\xfe", b"\0" * 40, b"null"]
)
def test_a_line_that_is_damaged_is_set_aside(tmp_path, damage):
    write(tmp_path, 1, 3)
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([lines[0], damage, lines[2], b""]))
    write(tmp_path, 4, 4, after_step=3)
    assert steps(tmp_path) == [1, 3, 4]
    assert (tmp_path / "unreadable.txt").read_text(encoding="utf-8").startswith("metrics.jsonl: ")


def test_evaluation_rows_go_with_their_step(tmp_path):
    log = MetricLog(tmp_path, False, 0)
    for row in ({"step": 1}, {"step": 1, "eval/loss": 0.5}, {"step": 2}, {"step": 2, "eval/loss": 0.4}):
        log.write(row)
    MetricLog(tmp_path, False, 1)
    assert steps(tmp_path) == [1, 1]


def test_tensorboard_has_the_same_numbers(tmp_path):
    write(tmp_path, 1, 4, tensorboard=True)
    write(tmp_path, 3, 5, after_step=2, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "rewards/margins"}
    assert [(e.step, e.value) for e in events.Scalars("rewards/margins")] == [(s, float(s)) for s in (1, 2, 3, 4, 5)]


def test_lines_of_several_writers_do_not_mix(tmp_path):
    path = tmp_path / "audit.jsonl"

    def rank(number):
        for step in range(50):
            append_line(path, {"rank": number, "step": step, "row_ids": list(range(500))})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(rank, range(4)))
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert {(row["rank"], row["step"]) for row in rows} == {(r, s) for r in range(4) for s in range(50)}
    assert len(rows) == 200
