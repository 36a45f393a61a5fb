"""Several processes that train together, forked from one that has torch loaded, as torchrun would start them."""

from __future__ import annotations

import os
import pickle
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch


def together(size: int, action: Callable[[int], Any]) -> list[Any]:
    """Carry out ``action(rank)`` in ``size`` processes and return by rank what each returned or raised.

    A process that was killed gives the number of the signal, negative.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    pipes = []
    for rank in range(size):
        read, write = os.pipe()
        if (pid := os.fork()) == 0:
            os.close(read)
            torch.set_num_threads(1)
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=port
            )
            try:
                result = action(rank)
            except BaseException as error:
                os.write(2, traceback.format_exc().encode())  # shown where a test fails
                result = error
                result.__cause__ = result.__context__ = result.__traceback__ = None
            with os.fdopen(write, "wb") as pipe:
                pickle.dump(result, pipe)
            os._exit(0)
        os.close(write)
        pipes.append((pid, read))
    results = []
    for pid, read in pipes:
        with os.fdopen(read, "rb") as pipe:
            said = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        results.append(pickle.loads(said) if said else code)
    return results
