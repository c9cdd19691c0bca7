import pytest

from pipeline.config import Data
from pipeline.data.sources import data_files, left_out
from pipeline.data.splits import of_split
from pipeline.errors import InputError
from tests.pipeline.files import jsonl

ROW = {"prompt": "Q", "chosen": "a", "rejected": "b"}
CLONE = ["train_prefs", "test_prefs", "train_sft", "test_sft"]


def clone(folder, names):
    """A folder as the Hub's data sets have it."""
    (folder / "data").mkdir()
    return [jsonl(folder / "data" / f"{name}-00000-of-00001.jsonl", [ROW]) for name in names]


def test_a_clone_is_read_without_its_test_files(tmp_path):
    train, test = clone(tmp_path, ["train", "test"])
    data = Data(train=str(tmp_path))
    assert [file.path for file in data_files(data, tmp_path)] == [str(train)]
    others = left_out(data, tmp_path / "workspace", tmp_path / "runs")
    assert others == [f"data.train = {str(tmp_path)!r}: not read, as files of other splits: data/{test.name}"]
    both = Data(train=str(tmp_path), eval=str(tmp_path))
    assert [(file.path, file.split) for file in data_files(both, tmp_path)] == [
        (str(train), "train"),
        (str(test), "eval"),
    ]


def test_of_several_splits_one_must_be_named(tmp_path):
    clone(tmp_path, CLONE)
    with pytest.raises(InputError, match=r'several splits .*split = "train_prefs"'):
        data_files(Data(train=str(tmp_path)), tmp_path)
    named = Data.model_validate({"train": {"path": str(tmp_path), "split": "train_prefs"}})
    assert [file.path.rpartition("/")[2] for file in data_files(named, tmp_path)] == [
        "train_prefs-00000-of-00001.jsonl"
    ]
    wrong = Data.model_validate({"train": {"path": str(tmp_path), "split": "train_rm"}})
    with pytest.raises(InputError, match="train_sft"):
        data_files(wrong, tmp_path)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["a.jsonl", "b.parquet"], ["a.jsonl", "b.parquet"]),
        (["train_1.jsonl", "train_2.jsonl"], ["train_1.jsonl", "train_2.jsonl"]),
        (["train.jsonl", "extra.jsonl"], ["train.jsonl", "extra.jsonl"]),
        (["trainers.jsonl", "tests_of_mine.jsonl"], ["trainers.jsonl", "tests_of_mine.jsonl"]),
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "validation-00000-of-00001.parquet"],
         ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]),
        (["train.jsonl.gz", "dev.jsonl.gz"], ["train.jsonl.gz"]),
    ],
)  # fmt: skip
def test_splits_are_told_by_names(names, chosen):
    assert of_split(names, "train", "data.train", "folder").files == chosen
