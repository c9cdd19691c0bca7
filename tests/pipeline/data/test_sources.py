"""Which files data.train and data.eval name: on disk, in an object store (a real S3 server), on the hub (offline).

The same set gives the same tokens, whatever it comes in.
"""

import csv
import gzip
import hashlib
import io
import json
import os
import random
import urllib.request

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpo.text.tokenizers import load_tokenizer
from pipeline.config import Config
from pipeline.data import sources
from pipeline.data.rows import read_rows
from pipeline.data.sources import data_files, file_digest_of, file_weights
from pipeline.errors import InputError
from pipeline.place import Place
from pipeline.store.tokens import PAIRS
from tests.object_store import credentials, free_port, s3_server
from tests.pipeline.files import config_file, jsonl
from tests.pipeline.stages.test_prepare import prompts, tokenized
from tests.places import DATA

ROWS = [{"prompt": f"Question {i}, «é»?", "chosen": f' yes "{i}"\nand more', "rejected": f" no {i}"} for i in range(7)]
CHATS = [
    {
        "prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": f"Question {i}?"}],
        "chosen": [{"role": "assistant", "content": f"yes {i}, «é»"}],
        "rejected": [{"role": "assistant", "content": f"no {i}"}],
    }
    for i in range(7)
]


def place_of(tmp_path, train, **data):
    """A run in `tmp_path` over this data."""
    run = {"dir": str(tmp_path / "runs"), "workspace": str(tmp_path / "workspace")}
    return Place.of(Config.load(config_file(tmp_path, run=run, data={"train": train, **data})))


def files_of(tmp_path, train, **data):
    place = place_of(tmp_path, train, **data)
    return data_files(place.config.data, place.workspace)


def paths_of(tmp_path, train, **data):
    return [file.path for file in files_of(tmp_path, train, **data)]


def refusal(tmp_path, train, **data):
    with pytest.raises(InputError) as error:
        files_of(tmp_path, train, **data)
    assert "\n" not in str(error.value)
    return str(error.value)


# On disk


@pytest.fixture
def folder(tmp_path):
    """a.jsonl, b.jsonl and sub/c.parquet."""
    (tmp_path / "set" / "sub").mkdir(parents=True)
    jsonl(tmp_path / "set" / "a.jsonl", ROWS)
    jsonl(tmp_path / "set" / "b.jsonl", ROWS[:2])
    pq.write_table(pa.Table.from_pylist(ROWS[2:4]), tmp_path / "set" / "sub" / "c.parquet")
    return tmp_path / "set"


def test_a_file_a_list_a_folder_and_a_pattern(tmp_path, folder):
    """They are numbered in the order in which the list names them, those of one entry by name."""
    a, b, c = (str(folder / name) for name in ("a.jsonl", "b.jsonl", "sub/c.parquet"))
    assert paths_of(tmp_path, a) == [a]
    assert paths_of(tmp_path, [c, a]) == [c, a]
    assert paths_of(tmp_path, str(folder)) == [a, b, c]
    assert paths_of(tmp_path, str(folder / "*.jsonl")) == [a, b]
    assert paths_of(tmp_path, [str(folder / "sub"), str(folder / "?.jsonl")]) == [c, a, b]


def test_a_table_says_more_of_its_files(tmp_path, folder):
    tables = [{"path": str(folder / "*.jsonl"), "weight": 2.5, "columns": {"prompt": "q"}}, str(folder / "sub")]
    found = files_of(tmp_path, tables, columns={"chosen": "best"})
    assert [(file.split, file.weight, file.columns) for file in found] == [
        ("train", 2.5, {"prompt": "q"}),
        ("train", 2.5, {"prompt": "q"}),
        ("train", 1.0, {"chosen": "best"}),
    ]
    assert file_weights(files_of(tmp_path, tables)) == (2.5, 2.5, 1.0)
    assert file_weights(files_of(tmp_path, {"path": str(folder), "weight": 1.0})) == ()


def test_columns_of_a_table_replace_those_of_all_files(tmp_path, folder):
    table = {"path": str(folder / "a.jsonl"), "columns": {}}
    assert files_of(tmp_path, table, columns={"chosen": "best"})[0].columns == {}


def test_the_split_of_a_file(tmp_path, folder):
    """Held-out files come last; with a fraction each row's prompt says where it belongs."""
    a, b, c = (str(folder / name) for name in ("a.jsonl", "b.jsonl", "sub/c.parquet"))
    assert [(f.path, f.split) for f in files_of(tmp_path, a, eval=b)] == [(a, "train"), (b, "eval")]
    table = {"path": c, "columns": {"prompt": "q"}}
    assert [(f.split, f.columns) for f in files_of(tmp_path, a, eval=table)][1] == ("eval", {"prompt": "q"})
    assert [f.split for f in files_of(tmp_path, [a, b], eval=0.25)] == [None, None]


def test_more_files_than_a_row_id_can_number(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(sources, "MOST_FILES", 2)
    assert refusal(tmp_path, str(folder)) == "data.train and data.eval name 3 files; at most 2 are supported."
    assert len(files_of(tmp_path, str(folder / "*.jsonl"))) == 2


def test_a_changed_file_has_another_digest(tmp_path, folder):
    (file,) = files_of(tmp_path, str(folder / "a.jsonl"))
    before = file_digest_of(place_of(tmp_path, str(folder)).memo, file)
    assert before == file_digest_of(place_of(tmp_path, str(folder)).memo, file)
    jsonl(folder / "a.jsonl", [*ROWS[:-1], {**ROWS[-1], "chosen": "other"}])
    assert file_digest_of(place_of(tmp_path, str(folder)).memo, file) != before


# In an object store


def content_of(name, rows):
    """A file of these rows, as bytes."""
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if name.endswith(".gz"):
        return gzip.compress(lines)
    if name.endswith(".zst"):
        return pa.compress(lines, "zstd", asbytes=True)
    table, out = pa.Table.from_pylist(rows), io.BytesIO()
    if name.endswith(".parquet"):
        pq.write_table(table, out, row_group_size=3)
    elif name.endswith(".arrow"):
        with pa.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    elif name.endswith(".json"):
        return json.dumps(rows, indent=1).encode()
    elif name.endswith(".csv"):
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, rows[0])
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()
    else:
        return lines
    return out.getvalue()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The port of a server; clients made for it are forgotten afterwards."""
    with s3_server(tmp_path_factory.mktemp("s3") / "log") as port, pytest.MonkeyPatch.context() as patch:
        for name, value in credentials(port).items():
            patch.setenv(name, value)
        forget()
        yield port
    forget()


def forget():
    """fsspec keeps its clients, and with them endpoint and credentials, for as long as the process lives."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def bucket(server, tmp_path):
    """An empty place in the store."""
    return f"s3://bucket/{tmp_path.name}"


@pytest.fixture(scope="module")
def put(server):
    """Write an object as another process would: the client that is tested is not told."""
    return fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False).pipe


NAMES = ["a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.parquet", "e.arrow", "f.json", "g.csv", "deep/h.jsonl"]


@pytest.fixture(scope="module")
def both(put, tmp_path_factory):
    """The same eight files on disk and in the store."""
    disk, store = tmp_path_factory.mktemp("both"), "s3://bucket/both"
    for number, name in enumerate(NAMES):
        content = content_of(name, ROWS[number % 3 :])
        (disk / name).parent.mkdir(exist_ok=True)
        (disk / name).write_bytes(content)
        put(f"{store}/{name}", content)
    for name in ("notes.txt", "dataset_info.json", "deep/_meta.json"):
        (disk / name).write_bytes(b"{}")
        put(f"{store}/{name}", b"{}")
    return disk, store


@pytest.mark.parametrize("name", NAMES)
def test_an_object_gives_the_rows_of_the_file(tmp_path, both, name):
    disk, store = both
    (path,) = paths_of(tmp_path, f"{store}/{name}")
    assert path == f"{store}/{name}"
    rows = list(read_rows(path))
    assert rows == list(read_rows(str(disk / name)))
    assert rows and all(row.fault is None for row in rows)


@pytest.mark.parametrize("what", ["", "/", "/deep", "/*.jsonl*", "/?.json", "/**/h.jsonl"])
def test_folders_and_patterns_of_objects(tmp_path, both, what):
    disk, store = both
    found = paths_of(tmp_path, store + what)
    assert [path.replace(store, str(disk)) for path in found] == paths_of(tmp_path, f"{disk}{what}") != []


def test_a_changed_object_has_another_digest(tmp_path, bucket, put):
    """Though this process has listed the folder before, and the object is as long as it was."""
    uri = f"{bucket}/a.jsonl"

    def digest():
        (file,) = files_of(tmp_path, bucket)
        return file_digest_of(place_of(tmp_path, bucket).memo, file)

    put(uri, content_of("a.jsonl", ROWS))
    before = digest()
    assert digest() == before
    put(uri, content_of("a.jsonl", ROWS[::-1]))
    after = digest()
    assert after != before
    put(f"{bucket}/b.jsonl", content_of("b.jsonl", ROWS))
    assert len(paths_of(tmp_path, bucket)) == 2


@pytest.mark.parametrize(
    "uri", ["s3://nobucket/a.jsonl", "s3://nobucket/*.jsonl", "s3://bucket/none.jsonl", "s3://bucket/none/"]
)
def test_a_bucket_or_an_object_that_is_not_there(tmp_path, server, uri):
    said = refusal(tmp_path, uri)
    assert said.startswith(f"data.train = {uri!r}: there is no such file, or none in a supported format (.jsonl, ")


def test_an_object_of_no_known_kind(tmp_path, bucket, put):
    put(f"{bucket}/a.txt", b"text")
    assert refusal(tmp_path, f"{bucket}/a.txt").startswith(f"data.train = '{bucket}/a.txt': only .jsonl, ")


def test_an_endpoint_that_cannot_be_reached(tmp_path, server, monkeypatch):
    endpoint = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    forget()
    try:
        for uri in ("s3://bucket/a.jsonl", "s3://bucket/*.jsonl"):
            said = refusal(tmp_path, uri)
            assert said.startswith(f"data.train = {uri!r} cannot be listed: Could not connect to the endpoint URL: ")
            assert endpoint in said
    finally:
        forget()


def check_credentials(port, wanted):
    """Let the server look at credentials, or not."""
    url, number = f"http://127.0.0.1:{port}/moto-api/reset-auth", b"0" if wanted else b"Infinity"
    urllib.request.urlopen(urllib.request.Request(url, number, {"Content-Type": "text/plain"}), timeout=5)


def test_credentials_that_are_refused(tmp_path, server):
    check_credentials(server, True)
    forget()
    try:
        for uri in ("s3://bucket/a.jsonl", "s3://bucket/a", "s3://bucket/*.jsonl"):
            said = refusal(tmp_path, uri)
            assert said.startswith(f"data.train = {uri!r} cannot be listed: ")
            assert "Access Key Id" in said or "Forbidden" in said
    finally:
        check_credentials(server, False)
        forget()


def test_no_credentials(tmp_path, server, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    forget()
    try:
        said = refusal(tmp_path, "s3://bucket/a.jsonl")
        expected = "data.train = 's3://bucket/a.jsonl' cannot be listed: Unable to locate credentials"
        assert said == f"{expected}. Credentials come from the environment, as for the store's tools"
    finally:
        forget()


def test_a_store_whose_client_is_not_installed(tmp_path):
    try:
        import gcsfs  # noqa: F401
    except ImportError:
        said = refusal(tmp_path, "gs://bucket/a.jsonl")
        assert said.startswith("data.train = 'gs://bucket/a.jsonl': Please install gcsfs")
        assert "ray-align[gcs]" in said
    else:
        pytest.skip("gcsfs is installed")


def test_a_scheme_that_nobody_knows(tmp_path):
    said = refusal(tmp_path, "nosuch://bucket/a.jsonl")
    assert said == "data.train = 'nosuch://bucket/a.jsonl' cannot be listed: Protocol not known: nosuch"


def test_a_file_that_is_not_there_is_answered_with_those_like_it(tmp_path):
    (tmp_path / "pears").mkdir()
    assert refusal(tmp_path, "pears/a.jsonl").endswith(f"does not exist. {tmp_path}/pears is empty.")
    for name in ("pairs48.jsonl", "other.csv", "notes.txt", "more.md"):
        (tmp_path / "pears" / name).touch()
    said = refusal(tmp_path, "pears/pair48.jsonl")
    assert said.endswith(f"does not exist. In {tmp_path}/pears there are: pairs48.jsonl and others.")
    assert refusal(tmp_path, "pears/zzz").endswith("there are: more.md, notes.txt, other.csv and others.")


# On the hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The library `datasets`, offline, with a cache in which a test lays what was fetched before."""
    datasets = pytest.importorskip("datasets")
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    return tmp_path / "hf"


def lay(hub, repository, splits, name="default"):
    """Put a data set where `datasets` keeps one of the hub that it has fetched; its own builder writes the files."""
    from datasets.packaged_modules.json.json import Json

    owner, _, short = repository.partition("/")
    source = hub.parent / "source"
    source.mkdir(exist_ok=True)
    data_files = {split: [str(jsonl(source / f"{split}.jsonl", rows))] for split, rows in splits.items()}
    made = hub.parent / "made"
    revision = hashlib.sha256(json.dumps(splits).encode()).hexdigest()
    builder = Json(cache_dir=str(made), dataset_name=short, config_name=name, hash=revision, data_files=data_files)
    builder.download_and_prepare()
    (kept,) = (made / short).glob(f"{name}-*")
    (hub / f"{owner}___{short}").mkdir(parents=True, exist_ok=True)
    kept.rename(hub / f"{owner}___{short}" / name)


def values_of(paths):
    return [row.value for path in paths for row in read_rows(path)]


@pytest.mark.parametrize("path", ["owner/pairs", "hf://datasets/owner/pairs"])
def test_a_data_set_of_the_hub(tmp_path, hub, path):
    """Its rows are kept in the workspace, where a second look finds them."""
    lay(hub, "owner/pairs", {"train": ROWS[:4], "test": ROWS[4:]})
    (found,) = files_of(tmp_path, path)
    assert found.path.startswith(str(tmp_path / "workspace" / "sources")) and found.path.endswith(".arrow")
    assert values_of([found.path]) == ROWS[:4]
    written = os.stat(found.path).st_mtime_ns
    assert files_of(tmp_path, path) == [found]
    assert os.stat(found.path).st_mtime_ns == written


def test_a_split_of_the_hub(tmp_path, hub):
    lay(hub, "owner/pairs", {"train": ROWS[:4], "test": ROWS[4:]})
    (train, held_out) = files_of(tmp_path, "owner/pairs", eval={"path": "owner/pairs", "split": "test"})
    assert (train.split, values_of([train.path])) == ("train", ROWS[:4])
    assert (held_out.split, values_of([held_out.path])) == ("eval", ROWS[4:])
    weighted = {"path": "owner/pairs", "split": "train[:50%]", "weight": 2, "columns": {"prompt": "chosen"}}
    (half,) = files_of(tmp_path, weighted)
    assert (half.weight, half.columns, values_of([half.path])) == (2.0, {"prompt": "chosen"}, ROWS[:2])


def test_the_same_split_of_the_hub_is_not_held_out(tmp_path, hub):
    lay(hub, "owner/pairs", {"train": ROWS})
    assert "is also a training file" in refusal(tmp_path, "owner/pairs", eval="owner/pairs")


def test_one_of_several_data_sets_of_a_name(tmp_path, hub):
    lay(hub, "owner/pairs", {"train": ROWS[:2]}, "first")
    lay(hub, "owner/pairs", {"train": ROWS[2:]}, "second")
    for name, rows in (("first", ROWS[:2]), ("second", ROWS[2:])):
        assert values_of(paths_of(tmp_path, {"path": "owner/pairs", "name": name})) == rows


@pytest.mark.parametrize(
    ("source", "split", "what"),
    [
        ("owner/none", "train", "owner/none"),
        ({"path": "owner/pairs", "split": "nope"}, "nope", 'Unknown split "nope". Should be one of '),
        ({"path": "owner/pairs", "name": "other"}, "train", "Couldn't find cache for owner/pairs for config 'other'"),
    ],
)
@pytest.mark.parametrize("key", ["data.train", "data.eval"])
def test_what_the_hub_does_not_give(tmp_path, hub, folder, key, source, split, what):
    lay(hub, "owner/pairs", {"train": ROWS})
    there = str(folder / "a.jsonl")
    train, eval_ = (source, there) if key == "data.train" else (there, source)
    said = refusal(tmp_path, train, eval=eval_)
    path = source if isinstance(source, str) else source["path"]
    expected = f"{key} = {path!r} is not a file here, and its split {split!r} could not be loaded from the Hub: "
    assert said.startswith(expected)
    assert what in said.removeprefix(expected)


def test_a_folder_here_goes_before_a_name_of_the_hub(tmp_path, hub, monkeypatch):
    lay(hub, "owner/pairs", {"train": ROWS[:2]})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "pairs").mkdir(parents=True)
    jsonl(tmp_path / "owner" / "pairs" / "a.jsonl", ROWS[2:])
    assert values_of(paths_of(tmp_path, "owner/pairs")) == ROWS[2:]


def test_a_missing_file_is_no_name_of_the_hub(tmp_path, hub):
    """Of the same form, but with an ending that only files have."""
    said = f"data.train = '{tmp_path}/data/pairs.jsonl': does not exist. Nor does the folder {tmp_path}/data."
    assert refusal(tmp_path, "data/pairs.jsonl") == said


# The same set in every form


def forms_of(tmp_path, hub, rows, plain):
    """The paths of one set in each form that it can be had in, by name."""
    import datasets

    names = ["a.jsonl", "b.json", "c.parquet", "d.jsonl.zst", "e.jsonl.gz", "f.arrow"] + ["g.csv"] * plain
    found = {}
    for name in names:
        (tmp_path / name).write_bytes(content_of(name, rows))
        found[name] = paths_of(tmp_path, str(tmp_path / name))
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    found["saved"] = paths_of(tmp_path, str(tmp_path / "saved"))
    lay(hub, "owner/pairs", {"train": rows})
    found["hub"] = paths_of(tmp_path, "owner/pairs")
    return found


def digest_of(folder):
    """SHA-256 of what is trained on, in the order of the row ids."""
    table = pa.concat_tables(pq.read_table(path) for path in sorted((folder / "train").glob("*.parquet")))
    table = table.select(PAIRS.names).sort_by("row_id").combine_chunks()
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return hashlib.sha256(out.getvalue()).hexdigest()


def check_all_forms(tmp_path, forms, count, **options):
    digests = {}
    for name, paths in forms.items():
        counts = tokenized(tmp_path / "tokens" / name, paths, **options)
        assert (counts["read"], counts["train"], counts["rejected"]) == (count, count, 0), name
        digests[name] = digest_of(tmp_path / "tokens" / name)
    assert len(set(digests.values())) == 1, digests


@pytest.mark.parametrize("shape", ["strings", "messages"])
def test_a_set_gives_the_same_tokens_in_every_form(tmp_path, hub, shape):
    rows = ROWS if shape == "strings" else CHATS
    forms = forms_of(tmp_path, hub, rows, plain=shape == "strings")
    assert len(forms) == 8 + (shape == "strings")
    tokenizer = load_tokenizer("bytes", chat_template="chatml")
    check_all_forms(tmp_path, forms, 7, tokenizer=tokenizer, max_length=512)
    one = tmp_path / "other"
    tokenized(one, [jsonl(tmp_path / "o.jsonl", [*rows[1:], rows[0]])], tokenizer=tokenizer, max_length=512)
    assert digest_of(one) != digest_of(tmp_path / "tokens" / "a.jsonl")


def real_rows():
    path = DATA / "tulu_human_pairs.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"no {path.name} in {DATA}")
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).split(b"\n") if line.strip()]


def test_a_real_set_gives_the_same_tokens_in_every_form(tmp_path, hub):
    rows = real_rows()
    tokenizer = load_tokenizer(str(DATA / "tokenizers" / "small2k"), eos_token="<end>")
    forms = forms_of(tmp_path, hub, rows, plain=True)
    check_all_forms(tmp_path, forms, 497, tokenizer=tokenizer, max_length=8192)


def test_a_real_set_is_held_out_by_prompt(tmp_path):
    """212 prompts of 497 rows: each on one side alone, and where it was when the other half of the rows comes."""
    rows = real_rows()
    assert len({row["prompt"] for row in rows}) == 212
    half = random.Random(5).sample(rows, 248)
    for name, given in (("half", half), ("all", rows)):
        counts = tokenized(
            tmp_path / name, [jsonl(tmp_path / f"{name}.jsonl", given)], None, max_length=8192, eval_fraction=0.2
        )
        assert counts["train"] + counts["eval"] == len(given)
    held_out, trained = prompts(tmp_path / "all", "eval"), prompts(tmp_path / "all", "train")
    assert held_out.isdisjoint(trained)
    assert len(held_out | trained) == 212
    assert 20 < len(held_out) < 65  # 42 +- four standard deviations of 5.8
    assert prompts(tmp_path / "half", "eval") < held_out
    assert prompts(tmp_path / "half", "train") < trained


# Folders of our own


def write_a_run(folder):
    """What a run leaves: its folder, and a workspace that is named otherwise than this run's."""
    for name, record in {
        "runs/base/config.json": {"run": {}, "data": {}, "policy": {}, "train": {}},
        "runs/base/epochs/0/manifest.json": {"fingerprint": "", "counts": {}, "files": {}, "made_of": {}},
        "other/tokens/1/manifest.json": {"fingerprint": "", "counts": {}, "files": {}, "made_of": {}},
        "other/cache/1/identity.json": {"weights": "", "config": {}, "dtype": "", "scorer": 1},
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(record), encoding="utf-8")
    for name in ("runs/base/audit", "runs/base/doctor/rejected", "other/tokens/1/train/0", "other/cache/1/a"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        jsonl(folder / f"{name}.jsonl", ROWS)


@pytest.mark.parametrize("train", [".", "**/*.jsonl"])
def test_what_runs_wrote_is_no_data(tmp_path, train):
    write_a_run(tmp_path)
    (tmp_path / "mine").mkdir()
    for name in ("mine/a.jsonl", "runs/b.jsonl", "mine/config.json", "mine/manifest.json"):
        jsonl(tmp_path / name, ROWS)
    place = place_of(tmp_path, train)
    (place.workspace / "tokens").mkdir(parents=True)
    jsonl(place.workspace / "tokens" / "c.jsonl", ROWS)  # of this run, whatever else is there
    place.run_dir.mkdir(parents=True)
    jsonl(place.run_dir / "rejected.jsonl", ROWS)
    found = [os.path.relpath(f.path, tmp_path) for f in data_files(place.config.data, place.workspace, place.run_dir)]
    names = [name for name in found if name.endswith(".jsonl")]
    assert names == ["mine/a.jsonl", "runs/b.jsonl"]
    assert train != "." or {"mine/config.json", "mine/manifest.json"} < set(found)


def test_nothing_but_what_runs_wrote(tmp_path):
    write_a_run(tmp_path)
    assert refusal(tmp_path, "runs").endswith("files, besides what runs wrote.")
    assert refusal(tmp_path, "runs/base/*.jsonl").endswith("no file matches this pattern, besides what runs wrote.")
    assert len(paths_of(tmp_path, "runs/base/audit.jsonl")) == 1  # who names a file means it


def test_data_in_the_workspace_that_the_user_names(tmp_path):
    (tmp_path / "workspace" / "mine").mkdir(parents=True)
    jsonl(tmp_path / "workspace" / "mine" / "a.jsonl", ROWS)
    assert len(paths_of(tmp_path, "workspace/mine")) == len(paths_of(tmp_path, "workspace")) == 1
