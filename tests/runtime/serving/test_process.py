"""A port is one server's, and word to stop is heard once and leaves the handlers as they were."""

from __future__ import annotations

import os
import signal
import socket

import pytest

from gatefx.errors import InputError
from gatefx.runtime.serving.process import check_port, stop_signal


def test_a_taken_port_is_refused_and_a_free_one_stays_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match="cannot open") as caught:
            check_port("127.0.0.1", port)
        assert str(port) in caught.value.given
    check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)


def test_a_strangers_address_is_refused() -> None:
    with pytest.raises(InputError, match="cannot open"):
        check_port("203.0.113.7", 8000)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_wait_and_nothing_else(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_signal() as stopped:
        assert not stopped.is_set()
        os.kill(os.getpid(), number)
        assert stopped.wait(10)
    assert signal.getsignal(number) is before
