"""What a server asks of the process that it runs in: a free port, and word of when to stop."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ...errors import InputError


def check_port(host: str, port: int) -> None:
    """Refuse a port that is taken: servers that share one would each get some of the requests.

    Raises:
        InputError: taken, or no address of this machine.
    """
    try:
        with socket.create_server((host, port)):
            return
    except OSError as error:
        raise InputError(
            "The HTTP door cannot open here.", given=f"{host}:{port}: {error}", expected="a free port of this machine"
        ) from error


@contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """Set by SIGINT and SIGTERM inside the block; their handlers come back afterwards. In the main thread only."""
    stopped = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, lambda *_: stopped.set())
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
