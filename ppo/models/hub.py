"""Uploading to the Hugging Face Hub: a folder that was saved, never the model in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import HTTPError


def push(
    save: Callable[[Path], Any],
    repo_id: str,
    commit_message: str,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    is_main_process: bool = True,
) -> str | None:
    """Let `save` write a folder, and upload that; the address of the commit, on the main process.

    Raises:
        ConnectionError: the Hub is switched off, cannot be reached, or refuses.
    """
    after = "Nothing has changed here; save_pretrained writes the model to a folder."
    if constants.HF_HUB_OFFLINE:
        raise ConnectionError(f"{repo_id!r} could not be pushed: the Hub is switched off by HF_HUB_OFFLINE=1. {after}")
    api = huggingface_hub.HfApi(token=token)
    with TemporaryDirectory() as top:
        folder = Path(top) / "model"
        try:
            if is_main_process:
                repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        except (HTTPError, OSError) as error:
            raise ConnectionError(f"{repo_id!r} could not be pushed to the Hub ({error}). {after}") from error
        save(folder)
        if not is_main_process:
            return None
        try:
            return str(
                api.upload_folder(
                    repo_id=repo_id,
                    folder_path=folder,
                    commit_message=commit_message,
                    revision=revision,
                    create_pr=create_pr,
                )
            )
        except (HTTPError, OSError) as error:
            raise ConnectionError(f"{repo_id!r} could not be pushed to the Hub ({error}). {after}") from error
