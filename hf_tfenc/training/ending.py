"""How a program ends."""

import os
import sys
from collections.abc import Callable
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from .arguments import RunError
from .checkpointing import SaveError
from .signals import EXIT_CODE, Interrupted


def ending_well(work: Callable[[], Any]) -> None:
    """Do some work as a program, which ends as `main` says."""
    speaks = os.environ.get("RANK", "0") == "0"  # what all processes meet with is said by one
    try:
        work()
    except Interrupted as stopped:
        if speaks:
            print(stopped, file=sys.stderr)
        sys.exit(EXIT_CODE)
    except (ValueError, OSError, StrictDataclassError) as error:
        if "HF_TFENC_TRACEBACK" in os.environ:
            raise
        if speaks or not isinstance(error, (RunError, SaveError)):
            print(f"Error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        if speaks:
            print("Stopped. What was saved before stays in the output folder.", file=sys.stderr)
        sys.exit(130)
