"""The process groups that these tests share: kept while they answer, replaced when they do not."""

import os
import time

import pytest
import torch.distributed as dist

from tests.pipeline.worker.group import Groups

pytestmark = pytest.mark.group


@pytest.fixture
def own_groups(tmp_path):
    """Groups of one test alone, since it breaks them."""
    groups = Groups(tmp_path / "groups")
    yield groups
    groups.close()


def test_one_group_runs_one_call_after_another(groups):
    assert groups.call(2, dist.get_rank) == [0, 1]
    assert groups.call(2, dist.get_world_size) == [2, 2]
    processes = groups.call(2, os.getpid)
    assert len({*processes, os.getpid()}) == 3
    assert groups.call(2, os.getpid) == processes


def test_a_group_is_replaced_when_a_rank_ends_or_raises_or_does_not_answer(own_groups):
    processes = [own_groups.call(1, os.getpid)]
    for function, argument, said in (
        (os._exit, 3, "rank 0 ended with status 3"),
        (int, "no number", "rank 0 ended with status 1"),
        (time.sleep, 60, "1 of 1 ranks did not answer within 0.5 s"),
    ):
        with pytest.raises(AssertionError, match=said):
            own_groups.call(1, function, argument, seconds=0.5 if function is time.sleep else 60)
        processes.append(own_groups.call(1, os.getpid))
    own_groups.run_afresh(1, [])
    processes.append(own_groups.call(1, os.getpid))
    assert len({number for (number,) in processes}) == 5
