"""A folder or a hub name -> a local folder."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import InputError, first_line

PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer*", "*.model"]


def model_folder(name: str, key: str) -> Path:
    """The folder itself, or a download of the hub's newest revision of that name.

    Raises:
        InputError: neither a folder nor a name that the hub can be asked for.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.is_absolute():
        raise InputError(f"{key} = {name!r}: there is no such folder.")
    from huggingface_hub import snapshot_download  # a quarter of a second, which a folder does not cost
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=PATTERNS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{key} = {name!r} is no folder here, and the hub did not give it: {first_line(error)}"
        ) from None
