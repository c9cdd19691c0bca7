"""What a run did, and that a stage says so itself."""

from dataclasses import replace

import pytest

from pipeline.config import Config
from pipeline.place import Place
from pipeline.record import Made, Record
from tests.pipeline.files import config_file


@pytest.fixture
def place(tmp_path):
    return Place.of(Config.load(config_file(tmp_path)))


def prepare(place, pairs):
    return Made(pairs, f"{pairs} pairs", {"pairs_read": pairs}, peak_bytes=7)


def score(place):
    raise KeyError


def test_a_stage_is_timed_announced_and_counted(place, capsys):
    record = Record()
    assert record.stage(prepare, place, 40) == 40
    assert list(record.seconds) == ["prepare"] and 0 <= record.seconds["prepare"] < 5
    assert (record.counts, record.peak_bytes) == ({"pairs_read": 40}, 7)
    assert capsys.readouterr().out.startswith("prepare   40 pairs  0.0 s")


def test_a_stage_that_fails_is_not_announced(place, capsys):
    record = Record()
    with pytest.raises(KeyError):
        record.stage(score, place)
    assert (record, capsys.readouterr().out) == (Record(), "")


def test_a_place_is_frozen(place):
    with pytest.raises(AttributeError):
        place.run_dir = place.workspace
    assert replace(place, run_dir=place.workspace).config is place.config
