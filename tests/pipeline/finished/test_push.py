"""`ray-align push` by huggingface_hub's own client, against a server that speaks as the Hub does."""

import socket

import pytest

from tests.pipeline.finished.hub import TOKEN, Hub, serving
from tests.pipeline.finished.runs import finished_run, program
from tests.pipeline.test_cli import left_with

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("push")
    return folder, finished_run(folder)


@pytest.fixture
def hub():
    with serving(Hub()) as hub:
        yield hub


def pushed(hub, *arguments, token=TOKEN, address=None, **environment):
    """The exit status and both outputs of a push; no token is taken from this machine's own login."""
    there = {"HF_ENDPOINT": address or hub.address, "HF_TOKEN": token, "HF_HOME": "/nonexistent"}
    there |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", **environment}
    status, out, error = program("push", *arguments, **there)
    assert TOKEN not in out + error
    assert "Traceback" not in error
    return status, out, error


def refusal(hub, status, *arguments, **options):
    """The one sentence on stderr."""
    found, _, error = pushed(hub, *arguments, **options)
    assert found == status, error
    *_, last = error.strip().splitlines()
    assert last.startswith("ray-align: ")
    return last.removeprefix("ray-align: ")


def test_the_export_is_uploaded_with_its_card(run, hub):
    folder, path = run
    export = folder / "runs/one/export"
    (export / "notes.txt").write_text("mine")
    status, out, error = pushed(hub, path, "org/name")
    (export / "notes.txt").unlink()
    assert status == 0, error
    assert hub.repositories == {"org/name": True}
    expected = {file.name: file.read_bytes() for file in export.iterdir() if file.name != "manifest.json"}
    assert {"README.md", "model.safetensors", "config.json", "tokenizer.json"} <= expected.keys()
    assert hub.files == expected
    first, *files, last, url = out.splitlines()
    assert first == f"{export} -> org/name (private)"
    assert {line.split()[2]: int(line.split()[0].replace(",", "")) for line in files} == {
        name: len(content) for name, content in expected.items()
    }
    assert last.split() == [f"{sum(map(len, expected.values())):,}", "bytes", "in", "all"]
    assert url == f"{hub.address}/org/name"


def test_public_is_what_one_asks_for(run, hub):
    folder, path = run
    assert pushed(hub, path, "org/name", "--public")[0] == 0
    assert hub.repositories == {"org/name": False}
    hub.files.clear()
    said = refusal(hub, 2, path, "org/name")
    assert said == (
        "org/name is there already, and everybody may see it; --public uploads to it nonetheless, or name another "
        "repository"
    )
    assert hub.files == {}
    assert pushed(hub, str(folder / "runs/one"), "org/name", "--public")[0] == 0
    assert hub.files
    hub.repositories["org/name"] = True
    status, out, _ = pushed(hub, path, "org/name", "--public")
    assert status == 0 and "org/name was private before, and stays so" in out and hub.repositories["org/name"]


def test_an_edited_card_is_pushed_and_edited_weights_are_not(tmp_path, hub):
    path = finished_run(tmp_path)
    export = tmp_path / "runs/one/export"
    (export / "README.md").write_text("# More\n")
    assert pushed(hub, path, "org/name")[0] == 0
    assert hub.files["README.md"] == b"# More\n"
    (export / "README.md").write_text("---\nlibrary_name: [\n---\n")
    said = refusal(hub, 2, path, "org/name")
    assert said == f"the Hub refuses the upload, perhaps for {export}/README.md: - bad YAML"
    config = export / "config.json"
    config.write_bytes(config.read_bytes().replace(b"4", b"5", 1))
    assert refusal(hub, 2, path, "org/name").startswith(f"{config} is damaged or was changed")


@pytest.mark.parametrize("name", ["a/b/c", "org/na me", "org/name.git", "org/a--b", "https://hf.co/o/n"])
def test_a_name_that_cannot_be_is_refused(run, hub, name):
    said = refusal(hub, 2, run[1], name)
    assert said.startswith(f"{name!r} names no repository: ") and said.endswith("Write for example org/name")
    assert hub.repositories == {}


def test_a_name_must_be_given(capsys):
    for words in (["my.toml"], ["my.toml", "run.name=two"]):
        assert left_with(2, capsys, "push", *words).endswith(
            "ORG/NAME is missing behind my.toml: the repository on the Hub; it is made where there is none\n"
        )


def test_without_a_token_or_its_rights(run, hub):
    _, path = run
    assert refusal(hub, 2, path, "org/name", token="").startswith("there is no token for the Hub: hf auth login, or ")
    said = refusal(hub, 2, path, "org/name", token="hf_unknown")
    assert said.startswith("the Hub does not know the token (Invalid user token.); hf auth login, or HF_TOKEN")
    hub.status = 403
    said = refusal(hub, 2, path, "org/name")
    assert said.startswith("the token may not write to org/name (You don't have the rights to create a model under ")


def test_a_hub_that_fails_or_is_not_there_may_be_asked_again(run, hub):
    _, path = run
    hub.status = 500
    assert refusal(hub, 1, path, "org/name").startswith("the Hub failed with status 500: ")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
    said = refusal(hub, 1, path, "org/name", address=address)
    assert said.startswith(f"the Hub ({address}) cannot be reached: ") and said.endswith("Try again")
    said = refusal(hub, 2, path, "org/name", HF_HUB_OFFLINE="1")
    assert said == "HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it"


def test_a_run_that_is_not_finished_is_not_pushed(run, hub):
    path = run[1]
    said = refusal(hub, 2, path, "org/name", "run.name=two")
    assert said.startswith("run.name = 'two' was not run yet: ") and said.endswith(
        f"Run ray-align run {path} run.name=two"
    )
    assert hub.repositories == {}
