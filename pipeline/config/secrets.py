"""Credentials in a configuration, which would be shown and written down."""

from __future__ import annotations

import re
from typing import Any

from pipeline.errors import ConfigError

# A user before the host of a URI, or a parameter that signs it or lets somebody in.
SECRET = re.compile(r"://([^/?#\s]*@|\S*[?&][^=&\s]*(token|secret|passw|credential|sig|key)[^=&\s]*=)", re.I)


def refuse_secrets(tree: Any, key: str = "") -> None:
    """Refuse a URI with credentials, without showing them: it would be written to folders and logs."""
    if isinstance(tree, dict | list):
        named = tree.items() if isinstance(tree, dict) else ((key, value) for value in tree)
        for name, value in named:
            refuse_secrets(value, f"{key}.{name}" if key and isinstance(tree, dict) else str(name))
    elif isinstance(tree, str) and SECRET.search(tree):
        raise ConfigError(
            f"{key} is a URI with a user name, password, key or token in it, which would be shown and written to the "
            "run's folder. Leave it out: credentials come from the environment, as for the store's tools."
        )
