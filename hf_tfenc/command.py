"""The command that trains, as the user has it: a wheel brings no train.py."""

import sys
from pathlib import Path

SCRIPT, COMMAND = "accelerate launch train.py", "hf-tfenc train"


def training_command() -> str:
    """`hf-tfenc train` where hf-tfenc is what runs, else the script."""
    return COMMAND if Path(sys.argv[0]).stem == "hf-tfenc" else SCRIPT
