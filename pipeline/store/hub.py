"""A folder or a Hub name -> a local folder."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import InputError, first_line

PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer*", "*.model"]


def config_here(name: str) -> Path | None:
    """The path of the config.json of a folder, or of a Hub name that was downloaded before; None if there is none."""
    if Path(name).is_dir() or Path(name).is_absolute():
        path = Path(name) / "config.json"
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache  # imported here: it takes a quarter of a second
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


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
