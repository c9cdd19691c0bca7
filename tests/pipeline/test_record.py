"""What a run did, and that a stage says so itself."""

from dataclasses import replace

import pytest

from pipeline.config import Config
from pipeline.place import Place
from pipeline.record import Made, Record
from pipeline.report.summary import write_summary
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


def scoring(place, scored, reused):
    return Made(None, "", {"sequences_scored": scored, "sequences_reused": reused}, peak_bytes=scored)


def again(folder, scored, reused, anew=False):
    """What a record says after one more run of a name."""
    record = Record.of(folder, anew)
    record.stage(scoring, Place.of(Config.load(config_file(folder))), scored, reused)
    return record.counts["sequences_scored"], record.counts["sequences_reused"], record.peak_bytes


def test_a_run_given_again_keeps_what_it_knew(tmp_path):
    assert again(tmp_path, 300, 20, anew=True) == (300, 20, 300)
    first = Record.of(tmp_path, False).earlier["seconds"]["scoring"]
    assert again(tmp_path, 480, 320) == (780, 20, 480)  # the first was stopped
    assert again(tmp_path, 0, 800) == (780, 20, 480)
    assert Record.of(tmp_path, False).earlier["seconds"]["scoring"] >= first
    assert again(tmp_path, 0, 800, anew=True) == (0, 800, 0)  # another training took the name


def test_a_finished_run_of_an_earlier_version_keeps_its_summary(tmp_path):
    write_summary(tmp_path, {"sequences_scored": 800, "steps": 3}, {"scoring": 421.0}, 2**50)
    assert again(tmp_path, 0, 800) == (800, 0, 2**50)
    assert Record.of(tmp_path, False).earlier["seconds"]["scoring"] >= 421
