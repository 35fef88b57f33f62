"""One worker of a cluster: does one piece of work after the other, and stops in good order when it is told to.

Knows nothing of how it was started or of what the work is. What is for the user comes back as data; what is a fault
of the program is raised.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llmdistill import errors
from llmdistill.errors import Interrupted, LlmdistillError
from llmdistill.run.executor import close_kept, keep_open
from llmdistill.run.signals import stopping_in_order

STOPPED = {"stopped": True}
"""What a worker gives that was told to stop before its piece was done."""

_LOOK_SECONDS = 1.0

Reply = dict[str, Any]


class Worker:
    """What runs on a machine of the cluster.

    Args:
        folder: where whoever started it works; taken as its own where the machine has it.
        stop_name: an actor of that name means that everyone stops.
    """

    def __init__(self, folder: str, stop_name: str) -> None:
        keep_open()
        if os.path.isdir(folder):
            os.chdir(folder)
        self._stop_name = stop_name

    def ready(self) -> int:
        """Says that it is there: its process."""
        return os.getpid()

    def do(self, work: Callable[[Any], Any], item: Any) -> Reply:
        """One piece of work: its result, the error that is for the user, or that it was stopped."""
        try:
            with stopping_in_order(), _heeding(lambda: _is_there(self._stop_name)):
                return {"result": work(item)}
        except Interrupted:
            return STOPPED
        except LlmdistillError as error:
            return {"error": [type(error).__name__, error.what, error.where, error.do]}
        except BaseException:
            close_kept()
            raise


def result_of(reply: Reply) -> Any:
    """The result, or the error that was to be told."""
    if "error" in reply:
        kind, what, where, do = reply["error"]
        raise getattr(errors, kind)(what, where=where, do=do)
    return reply["result"]


@contextmanager
def _heeding(told_to_stop: Callable[[], bool]) -> Iterator[None]:
    """Have the block interrupted, as by a signal, soon after it is told to stop."""
    done = threading.Event()

    def look() -> None:
        while not done.wait(_LOOK_SECONDS):
            if told_to_stop():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()


def _is_there(name: str) -> bool:
    import ray

    try:
        ray.get_actor(name)
        return True
    except ValueError:
        return False
    except Exception:  # the cluster is going away, which ends this process anyway
        return False
