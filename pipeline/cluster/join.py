"""An address -> this process as a part of the Ray cluster there, or within seconds the reason why not."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, first_line

KNOCK_SECONDS = 5.0  # for a connection to be taken
TAIL_BYTES = 20_000  # of the log, which Ray writes last
CLUSTER_ID = "/ray.rpc.NodeInfoGcsService/GetClusterId"
HOST_AND_PORT = re.compile(r"^(?:ray://)?\[?([\w.:%-]+?)\]?:(\d+)$")


def join(address: str, options: dict[str, Any], log: Path) -> None:
    """Join the cluster.

    Args:
        address: host:port, or "auto" for the cluster of this machine.
        options: keywords of `ray.init`.
        log: where Ray's own messages go meanwhile, in which alone it tells of a token.

    Raises:
        InputError: nothing answers there, or it wants another token.
    """
    import ray
    from ray.exceptions import AuthenticationError

    _knock(address)
    _ask_to_be_let_in(address)
    try:
        ray.init(address=address, **options)
    except AuthenticationError as error:
        raise InputError(_wants_a_token(address, first_line(error))) from None
    except (ConnectionError, RuntimeError) as error:
        if _tells_of_a_token(log):
            raise InputError(_wants_a_token(address, "it says that it is missing or incorrect.")) from None
        raise InputError(f"cluster.address = {address!r}: no Ray cluster answers there: {first_line(error)}") from None


def _knock(address: str) -> None:
    """Connect to the port, since Ray itself would try for minutes."""
    found = HOST_AND_PORT.match(address)
    if found is None:
        return
    try:
        socket.create_connection((found[1], int(found[2])), KNOCK_SECONDS).close()
    except OSError as error:
        raise InputError(
            f"cluster.address = {address!r}: nothing answers there ({error.strerror or error}). `ray status` on the "
            'head shows its address; unset it to start Ray on this machine, or "auto" for the cluster that runs here.'
        ) from None


def _ask_to_be_let_in(address: str) -> None:
    """Ask the cluster for its id, as Ray does, but once: Ray asks for half a minute, and tells its log alone."""
    found, token = HOST_AND_PORT.match(address), os.environ.get("RAY_AUTH_TOKEN")
    of_a_file = os.environ.get("RAY_AUTH_MODE") == "token" and token is None
    if found is None or address.startswith("ray://") or of_a_file or os.environ.get("RAY_USE_TLS") == "1":
        return
    import grpc  # which Ray brings along

    given = (("authorization", f"Bearer {token}"),) if token is not None else None
    with grpc.insecure_channel(f"{found[1]}:{found[2]}") as channel:
        try:
            channel.unary_unary(CLUSTER_ID)(b"", timeout=KNOCK_SECONDS, metadata=given)
        except grpc.RpcError as error:
            if isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.UNAUTHENTICATED:
                raise InputError(_wants_a_token(address, f"{error.details()}.")) from None


def _tells_of_a_token(log: Path) -> bool:
    if not log.exists():
        return False
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        return b"Unauthenticated" in file.read()


def _wants_a_token(address: str, said: str) -> str:
    given = "the one that is given is another" if os.environ.get("RAY_AUTH_TOKEN") else "none is given"
    return (
        f"cluster.address = {address!r}: the cluster wants a token, and {given}: {said} Set RAY_AUTH_MODE=token and "
        "RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, as on its head."
    )
