"""The machine that a run is on: its processes, devices and threads, and how much the libraries say."""

import logging
import os
import sys
import warnings
from datetime import timedelta

import datasets
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from .arguments import Arguments, OptionError
from .preflight import check_processes


def make_accelerator(args: Arguments) -> Accelerator:
    """The processes that were launched, together.

    Raises:
        OptionError: they have not found each other, or `accelerate launch` was told to divide gradients.
    """
    if (steps := os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")) != "1":
        raise OptionError(
            f"accelerate launch has gradient accumulation steps {steps}: leave that to --gradient_accumulation_steps "
            "behind train.py, and out of its own options and configuration."
        )
    accelerator = Accelerator(
        # None leaves it to `accelerate launch`.
        mixed_precision="bf16" if args.bf16 else "fp16" if args.fp16 else None,
        cpu=not torch.accelerator.is_available(),  # else processes on CPUs would not look for each other
        # NCCL's ten minutes are too few for the others while one process tokenizes some gigabytes.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=args.ddp_timeout))],
    )
    check_processes(accelerator)
    return accelerator


def set_threads(args: Arguments, accelerator: Accelerator) -> int:
    """Set and return the threads of this process on a CPU, where `accelerate launch` leaves one core working."""
    if accelerator.device.type != "cpu":
        return torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    torch.set_num_threads(args.cpu_threads or max(1, cores // local_processes))
    return torch.get_num_threads()


def device_text(accelerator: Accelerator, threads: int) -> str:
    processes = f"{accelerator.num_processes} process" + "es" * (accelerator.num_processes > 1)
    if accelerator.device.type == "cpu":
        device = f"CPU, {threads} thread" + "s" * (threads > 1) + " each" * (accelerator.num_processes > 1)
    elif accelerator.device.type == "cuda":
        device = torch.cuda.get_device_name(accelerator.device)
    else:
        device = accelerator.device.type
    return f"{processes} on {device}, {accelerator.mixed_precision} mixed precision"


def quiet_libraries(accelerator: Accelerator) -> None:
    """Our own log lines as plain sentences from one process; from the libraries, only what a user can act on."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stdout)
    logging.getLogger("hf_tfenc").setLevel(logging.INFO if accelerator.is_main_process else logging.ERROR)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()  # a bar for each of our small saves
    # Worker processes are forked after the tokenizer's threads have run; they never tokenize.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step\\(\\).*before.*optimizer.step.*")
