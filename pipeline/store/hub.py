"""A folder or a Hub name -> a local folder."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import InputError, first_line

PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer*", "*.model"]


def model_folder(name: str, key: str) -> Path:
    """Return the folder itself, or download the newest revision of that name from the Hub.

    Raises:
        InputError: there is no such folder, and the Hub has no such name or cannot be reached.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.is_absolute():
        raise InputError(f"{key} = {name!r}: there is no such folder.")
    from huggingface_hub import snapshot_download  # imported here: it takes a quarter of a second
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=PATTERNS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{key} = {name!r} is not a folder here, and could not be downloaded from the Hub: {first_line(error)}"
        ) from None
