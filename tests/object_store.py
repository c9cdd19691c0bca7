"""A real S3 server in a process of its own, and a way to it that can be cut."""

from __future__ import annotations

import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def s3_server(log: Path) -> Iterator[int]:
    """The port of a server with one empty bucket, named "bucket"; skips where the packages are not installed."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    port = free_port()
    with log.open("w") as out:
        server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stdout=out, stderr=out)
    try:
        for _ in range(200):
            try:
                bucket = urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")
                urllib.request.urlopen(bucket, timeout=5)
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                time.sleep(0.1)
        yield port
    finally:
        server.terminate()
        server.wait()


def credentials(port: int) -> dict[str, str]:
    """The environment of a client."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def way_to(target: int, port: int) -> Iterator[None]:
    """Inside, what connects to `port` reaches `target`; afterwards it is refused, and open connections end."""
    open_connections: list[socket.socket] = []

    class Through(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(("127.0.0.1", target)) as beyond:
                open_connections.extend([self.request, beyond])
                back = threading.Thread(target=_pass_on, args=(beyond, self.request), daemon=True)
                back.start()
                _pass_on(self.request, beyond)
                back.join()

    socketserver.ThreadingTCPServer.allow_reuse_address = True
    with socketserver.ThreadingTCPServer(("127.0.0.1", port), Through) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            server.socket.close()
            for connection in open_connections:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:  # closed long ago
                    continue


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:  # the way was cut
        return
