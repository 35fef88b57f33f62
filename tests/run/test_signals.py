"""Stopping in order."""

from __future__ import annotations

import os
import signal

import pytest

from llmdistill.errors import Interrupted
from llmdistill.run.signals import stopping_in_order


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_becomes_an_error_with_its_exit_code(number: int, code: int) -> None:
    with pytest.raises(Interrupted) as stopped, stopping_in_order():
        os.kill(os.getpid(), number)
    assert stopped.value.exit_code == code


def test_no_library_can_swallow_the_stop_as_an_ordinary_exception() -> None:
    with pytest.raises(Interrupted), stopping_in_order():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except Exception:
            pytest.fail("swallowed")


def test_the_former_handlers_are_back_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stopping_in_order():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_signal_ends_the_process_at_once() -> None:
    pid = os.fork()
    if pid == 0:
        try:
            with stopping_in_order():
                try:
                    os.kill(os.getpid(), signal.SIGINT)
                finally:
                    os.kill(os.getpid(), signal.SIGTERM)
                    os._exit(1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 143
