"""States that an earlier version saved, with a size and a CRC-32 of each file."""

import json
import zlib

import pytest

from tests.ppo import tiny
from tests.ppo.trials import QUIET, everything

pytestmark = QUIET


def saved(folder):
    """A state of one step, as the earlier version described it."""
    trainer = tiny.trainer()
    trainer.step(*tiny.batch())
    trainer.save_state(folder)
    path = folder / "complete.json"
    told = json.loads(path.read_text())
    files = {name: (folder / name).read_bytes() for name in told["files"]}
    told["files"] = {name: [len(content), zlib.crc32(content)] for name, content in files.items()}
    path.write_text(json.dumps(told, indent=1) + "\n")
    return trainer, sorted(files)


def test_it_loads(tmp_path):
    before, _ = saved(tmp_path / "state")
    after = tiny.trainer()
    assert everything(after) != everything(before)
    after.load_state(tmp_path / "state")
    assert everything(after) == everything(before)


@pytest.mark.parametrize("what", ["damaged", "missing"])
def test_one_that_is_not_whole_is_refused(what, tmp_path):
    _, names = saved(tmp_path / "state")
    path = tmp_path / "state" / names[0]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    if what == "damaged":
        path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=f"{names[0]} is {what}: load another state"):
        tiny.trainer().load_state(tmp_path / "state")
