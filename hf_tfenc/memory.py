"""What is said where a device has too little memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def memory_for(sizes: str, mend: str) -> Iterator[None]:
    """Some work on a device. Raises ValueError where its memory does not hold what options ask for.

    Args:
        sizes: these options with their values
        mend: what to do about it
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(f"This device has too little memory for {sizes}: {mend}.") from error
