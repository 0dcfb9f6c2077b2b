"""SIGTERM: finish the step, save and leave; or, where that cannot be, leave all the same."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)

EXIT_STATUS = 128 + signal.SIGTERM


@contextmanager
def stop_on_sigterm(grace_seconds: float) -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM makes the function say True and does nothing else, so that the loop can save and leave.

    A process that waits for another one inside torch.distributed never asks: Python's handlers do not run there. So a
    thread of its own ends the process, with exit status 143, if it has not left `grace_seconds` after the signal.
    """
    asked: list[int] = []
    left = threading.Event()
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def remember(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    def watch() -> None:
        while numbers := reader.recv(64):
            if signal.SIGTERM in numbers and not left.wait(grace_seconds):
                logger.error("still busy %g s after SIGTERM, so it ends here, without a checkpoint", grace_seconds)
                os._exit(EXIT_STATUS)

    before = signal.signal(signal.SIGTERM, remember)
    descriptor = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: bool(asked)
    finally:
        left.set()
        signal.set_wakeup_fd(descriptor)
        signal.signal(signal.SIGTERM, before)
        writer.close()
        watcher.join()
        reader.close()
