"""What one process does for all, or before the others: its errors reach all of them, so that none waits for ever."""

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from .arguments import OptionError

T = TypeVar("T")


def on_main(accelerator: Accelerator, work: Callable[[], Any]) -> Any:
    """What `work` returns in the main process, in all of them; what it raises is raised in all as OptionError."""
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except (ValueError, OSError) as error:
            if accelerator.num_processes == 1:
                raise
            outcome[1] = str(error)
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise OptionError(outcome[1])
    return outcome[0]


def main_first(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """What `work` returns, done by the main process before the others, which then find in the cache what it made.

    What it raises in the main process is raised in all as OptionError.
    """
    done: list[T] = []
    on_main(accelerator, lambda: done.append(work()))
    return done[0] if accelerator.is_main_process else work()
