"""`ray-align push`: a finished run's export -> a repository of the Hugging Face Hub."""

from __future__ import annotations

import glob
from typing import Any

from pipeline.config import Config
from pipeline.errors import InputError, Unreachable, first_line, last_line, visible
from pipeline.finished.found import CARD, finished
from pipeline.store.artifacts import Artifact, damaged_file

LOGIN = "hf auth login, or HF_TOKEN in the environment,"
OF_THE_USER = (400, 401, 403, 404, 409)  # statuses that the same command gets again


def push(config: Config, name: str, public: bool, command: str) -> None:
    """Upload the export, with its model card, into a repository that is made where there is none.

    Args:
        public: whether everybody may see it.
        command: makes the run.

    Raises:
        InputError: the run, the name or the token will not do.
        Unreachable: the Hub does not answer, or fails.
    """
    _, export = finished(config, command)
    _refuse_changed(export)
    from huggingface_hub import HfApi, get_token  # imported here: it takes a quarter of a second
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"{name!r} names no repository: {first_line(error)} Write for example org/name") from None
    if get_token() is None:
        raise InputError(f"there is no token for the Hub: {LOGIN} gives one, which needs the right to write")
    _announce(export, name, public)
    try:
        url = _upload(HfApi(), export, name, public)
    except InputError:
        raise  # it is a ValueError, too
    except OfflineModeIsEnabled:
        raise InputError("HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it") from None
    except HfHubHTTPError as error:
        raise _of_status(error, name) from None
    except ValueError as error:
        card = export.folder / CARD
        raise InputError(f"the Hub refuses the upload, perhaps for {card}: {last_line(error)}") from None
    except (HTTPError, OSError) as error:
        raise Unreachable(f"the Hub ({HfApi().endpoint}) cannot be reached: {first_line(error)}. Try again") from None
    print(visible(url))


def _refuse_changed(export: Artifact) -> None:
    """Raise an InputError where a file is not what the run wrote; the card may be another."""
    written = {name: entry for name, entry in export.files.items() if name != CARD}
    damaged = damaged_file(export._replace(files=written))
    if damaged is not None:
        raise InputError(
            f"{damaged} is damaged or was changed (its checksum does not match). Move {export.folder} elsewhere, and "
            "run the same configuration again: the export is then written anew from the weights"
        )


def _announce(export: Artifact, name: str, public: bool) -> None:
    """Say what goes where, before anything does."""
    sizes = {file: (export.folder / file).stat().st_size for file in sorted(export.files)}
    print(f"{export.folder} -> {name} ({'public' if public else 'private'})")
    for file, size in sizes.items():
        print(visible(f"  {size:>15,} bytes  {file}"))
    print(f"  {sum(sizes.values()):>15,} bytes in all", flush=True)


def _upload(api: Any, export: Artifact, name: str, public: bool) -> str:
    """Upload the files that the run wrote; returns the repository's address."""
    repository = api.create_repo(name, private=not public, exist_ok=True)
    private = api.repo_info(repository.repo_id).private
    if public and private:
        print(f"{repository.repo_id} was private before, and stays so; its settings on the Hub change that")
    if not public and not private:
        raise InputError(
            f"{repository.repo_id} is there already, and everybody may see it; --public uploads to it nonetheless, or "
            "name another repository"
        )
    api.upload_folder(
        repo_id=repository.repo_id,
        folder_path=export.folder,
        allow_patterns=[glob.escape(file) for file in export.files],
        commit_message="Upload the model of a run of ray-align",
    )
    return str(repository)


def _of_status(error: Any, name: str) -> InputError:
    """Say what an answer of the Hub means, and the way out."""
    status = error.response.status_code
    reason = error.server_message or first_line(error)
    if status == 401:
        return InputError(f"the Hub does not know the token ({reason}); {LOGIN} gives another")
    if status in (403, 404):
        return InputError(
            f"the token may not write to {name} ({reason}); take one with the right to write, of a member of its "
            "organisation, or another name"
        )
    if status in OF_THE_USER:
        return InputError(f"the Hub refuses {name}: {reason}")
    return Unreachable(f"the Hub failed with status {status}: {reason}. Try again")
