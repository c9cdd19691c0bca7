"""Uploading to the Hugging Face Hub: a folder that was saved, never the model in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import huggingface_hub
from huggingface_hub import constants


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
        ValueError: this process is told to work offline; nothing has happened then.
    """
    if constants.HF_HUB_OFFLINE:
        raise ValueError(
            f"Nothing can be pushed to {repo_id!r}: the Hub is switched off by HF_HUB_OFFLINE=1. Unset it, or write "
            "the model to a folder with save_pretrained."
        )
    api = huggingface_hub.HfApi(token=token)
    if is_main_process:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with TemporaryDirectory() as top:
        folder = Path(top) / "model"
        save(folder)
        if not is_main_process:
            return None
        return str(
            api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
            )
        )
