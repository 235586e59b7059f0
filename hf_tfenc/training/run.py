"""A run from options to a finished output folder: data, tokenizer, model, training, results."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from datasets import Dataset
from transformers import PreTrainedModel, enable_full_determinism

from .. import __version__
from ..memory import memory_for
from ..pretrained import read_config
from ..publish.card import renew_card, test_name
from ..publish.hub import Uploads
from ..tasks import Task
from .arguments import CONFIG_FILE, Arguments, OptionError, launch_command, parse_arguments
from .checkpointing import OutputFolder, put_back, set_aside_newer, tidy, together, write_text
from .compilation import check_compilation
from .dry_run import dry_run
from .ending import ending_well
from .evaluation import Evaluation
from .lock import FolderLock
from .machine import device_text, make_accelerator, quiet_libraries, set_threads
from .model import load_best, make_model
from .monitor import LOG_FILE, Monitor
from .optimization import peak_learning_rate
from .preflight import check_attention, check_folder, check_rows, check_space, warn_of_bare_texts, warn_of_unknown
from .processes import on_main
from .reading import Data, read
from .results import finish, result_text
from .resume import (
    METRICS_FILE,
    Start,
    check_options,
    check_output,
    check_same_run,
    find_start,
    measures_alike,
    run_facts,
)
from .signals import Interrupted, StopSignals
from .tracking import check_tracker, open_tracker
from .trainer import Progress, Trainer

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> None:
    """The program.

    It ends with 0 where all is done, with 2 and one line for a user's mistake, with 75 where a signal stopped it and it
    can go on, and with 130 for Ctrl-C before there was anything to save. A launcher may end with a code of its own.
    """
    ending_well(lambda: run(parse_arguments(argv)))


def run(args: Arguments) -> dict[str, Any]:
    """Train as `args` say, or go on where an earlier call stopped.

    Returns:
        the metrics, which also stand in the output folder's metrics.json; none of a dry run

    Raises:
        RunError, ValueError, OSError: one sentence, before training starts where that can be.
        Interrupted: after a signal, with everything saved.
    """
    mend = "halve it; in training, twice the --gradient_accumulation_steps then make the same of a step"
    with (
        FolderLock(Path(args.output_dir or "")) as lock,
        StopSignals() as signals,
        Uploads(args) as uploads,
        memory_for(batch_sizes(args), mend),
    ):
        return _run(args, lock, signals, uploads)


def batch_sizes(args: Arguments) -> str:
    """The options that say how much is in memory at once, with their values."""
    rows = f"--per_device_train_batch_size {args.per_device_train_batch_size}"
    training = f"--tokens_per_batch {args.packed_tokens}" if args.packing == "packed" else rows
    return f"{training}, or in an evaluation for --per_device_eval_batch_size {args.per_device_eval_batch_size}"


def _run(args: Arguments, lock: FolderLock, signals: StopSignals, uploads: Uploads) -> dict[str, Any]:
    accelerator = make_accelerator(args)
    metrics = _run_together(accelerator, args, lock, signals, uploads)
    # By now the trainer is freed: torch may hang where that happens to DDP's model after the processes have parted.
    accelerator.free_memory()
    accelerator.end_training()
    return metrics


def _run_together(
    accelerator: Accelerator, args: Arguments, lock: FolderLock, signals: StopSignals, uploads: Uploads
) -> dict[str, Any]:
    if args.lora_r and accelerator.distributed_type == DistributedType.FSDP:
        raise OptionError("--lora_r does not go with FSDP: what is trained is small, so use DDP.")
    check_tracker(args)
    say = accelerator.print
    quiet_libraries(accelerator)
    folder = Path(args.output_dir or "")
    find = dry_start if args.dry_run else locked_start
    start: Start = on_main(accelerator, lambda: find(args, folder, lock))
    check_options(start, args, accelerator.num_processes)
    check_folder(folder, accelerator)
    check_attention(args)
    if not start.finished:
        check_compilation(args, accelerator)
    hardware = device_text(accelerator, set_threads(args, accelerator))
    say(hardware)

    saved = folder if start.finished else start.checkpoint
    if args.model_name_or_path and saved is None:
        read_config(args.model_name_or_path)  # before any long work
    data = read(args, accelerator, saved)
    task, tokenizer, rows = data.task, data.tokenizer, data.rows
    model = ready_model(args, data, saved, accelerator)
    facts = run_facts(args, model.config, tokenizer, rows, accelerator, data.stream)
    progress = Progress(**start.state.get("progress", {}))
    if not check_same_run(start, facts, args):
        progress.consumed_bins = 0  # the rows of this epoch are others
    if not measures_alike(start, facts):
        progress.best_metric = None  # no model before is compared with those to come
    train_rows = rows["train"] if data.stream is None else data.stream
    trainer = Trainer(args, task, model, train_rows, rows["validation"], accelerator, signals, progress)
    if args.dry_run:
        say("\n" + "\n".join(dry_run(trainer, data.splits, rows)))
        return {}
    with signals.deferred():
        if start.finished:
            say(f"{folder} holds this run, finished; it is measured once more.")
            metrics = metrics_of_finished(folder, facts)
        else:
            if not on_main(accelerator, lambda: prepare_folder(args, folder, lock, model, start, progress)):
                progress.best_metric = None  # the next evaluation begins anew
            output = OutputFolder(folder, accelerator, tokenizer, args.save_total_limit, facts, uploads)
            output.changed = True  # to the start, so that it is known at once whether uploads go well
            output.publish(progress.global_step)
            baseline_loss = on_main(accelerator, lambda: task.baseline_loss(rows["train"], rows["validation"]))
            metrics = {"baseline_loss": baseline_loss, "rows": facts["rows"]}
            metrics |= train(trainer, output, baseline_loss, start)
        accelerator.wait_for_everyone()
        best = load_best(args, task, folder).to(accelerator.device)
        measured = measured_or_stopped(trainer.evaluation.measure(best, signals))
        metrics |= trainer.evaluation.metrics(measured)
        if "test" in rows and not start.finished:  # it is looked at once
            metrics |= test_metrics(args, task, best, rows["test"], accelerator, signals)
    if accelerator.is_main_process and not start.finished:
        metrics |= {"hardware": hardware, "versions": facts["versions"] | {"hf_tfenc": __version__}}
        finish(args, data, best, measured, metrics, folder, trainer.progress.tokens)
    if accelerator.is_main_process:
        metrics["summary"] = task.summary(metrics)
        say("\n" + result_text(metrics, folder))
        if start.finished:
            renew_card(folder, args, best.config, metrics)
            say(f"\nTo run it again from the start: {launch_command(args, overwrite=True)}")
        if args.push_to_hub:
            say(uploads.finish())
    return metrics


def ready_model(args: Arguments, data: Data, saved: Path | None, accelerator: Accelerator) -> PreTrainedModel:
    """The model of the run, fit for its rows; the learning rate that suits it is set in `args`, and the random seeds.

    Args:
        saved: an output folder or a checkpoint of this run, where there is one
    """
    task, tokenizer, rows = data.task, data.tokenizer, data.rows
    enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)
    model = make_model(args, task, tokenizer, saved)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    check_rows(rows, model, tokenizer, task.token_columns)
    warn_of_unknown(rows, tokenizer, task.token_columns)
    if args.task != "causal-lm":
        warn_of_bare_texts(tokenizer)
    trained = model.num_parameters(only_trainable=True)
    part = f", {trained:,} of them trained" if args.lora_r else ""
    accelerator.print(
        f"{saved or args.model_name_or_path or args.preset}: {model.num_parameters():,} parameters{part}"
    )
    args.learning_rate = peak_learning_rate(model, args)
    set_seed(args.seed, device_specific=True)  # dropout differs between processes
    return model


def metrics_of_finished(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """What a finished run wrote. Raises OptionError where it was on other rows."""
    metrics = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
    if metrics.get("rows", facts["rows"]) != facts["rows"]:
        raise OptionError(
            f"--output_dir {folder} holds a finished run on other rows: choose another folder, or remove that run with "
            "--overwrite_output_dir."
        )
    return metrics


def train(trainer: Trainer, output: OutputFolder, baseline_loss: float, start: Start) -> dict[str, Any]:
    """Train to the end, from the beginning or from a checkpoint."""
    accelerator, step = trainer.accelerator, trainer.progress.global_step
    epoch = "on a stream" if trainer.steps_per_epoch is None else f"{trainer.steps_per_epoch:,} an epoch"
    args = trainer.args
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
    of_step = trainer.task.step_baseline(baseline_loss, rows)
    other = f", and of {of_step:.3f} in a training step" if of_step != baseline_loss else ""
    accelerator.print(
        f"{trainer.total_steps:,} steps, {epoch}; a model that only counts has a loss of {baseline_loss:.3f}{other}"
    )
    if start.checkpoint is not None:
        trainer.restore(start.checkpoint, start.state)
        accelerator.print(f"It goes on from {start.checkpoint}, after step {step:,}.")
    log_file, is_main, log_bytes = output.path / LOG_FILE, accelerator.is_main_process, start.state.get("log_bytes", 0)
    opened: list[Monitor] = []

    def open_monitor() -> None:
        tracker = open_tracker(trainer.args, output.path, step) if is_main else None
        opened.append(Monitor(log_file, trainer.total_steps, of_step, is_main, step, log_bytes, tracker))

    together(open_monitor)
    (monitor,) = opened
    try:
        return trainer.train(monitor, output)
    finally:
        monitor.close()


def measured_or_stopped(measured: Any) -> Any:
    """What was measured of the finished model. Raises Interrupted where a signal stopped it."""
    if measured is None:
        raise Interrupted("Stopped while the finished model was measured.")
    return measured


def test_metrics(
    args: Arguments, task: Task, model: PreTrainedModel, rows: Dataset, accelerator: Accelerator, signals: StopSignals
) -> dict[str, float]:
    """Metrics on the test split, under the names of the others with `test_` in place of `eval_`."""
    evaluation = Evaluation(task, rows, args.per_device_eval_batch_size, accelerator)
    metrics = evaluation.metrics(measured_or_stopped(evaluation.measure(model, signals)))
    return {test_name(name): value for name, value in metrics.items()}


# --- The pieces of a run ---------------------------------------------------------------------------------------------


def dry_start(args: Arguments, folder: Path, lock: FolderLock) -> Start:
    """The beginning, for a dry run tells of the whole run, whatever there is of it already."""
    check_output(args, folder)
    return Start()


def locked_start(args: Arguments, folder: Path, lock: FolderLock) -> Start:
    """Where the run begins, found while no other run can change it."""
    if (folder / CONFIG_FILE).exists():
        lock.take()
    return find_start(args, folder)


def prepare_folder(
    args: Arguments, folder: Path, lock: FolderLock, model: PreTrainedModel, start: Start, progress: Progress
) -> bool:
    """Make the output folder ready for the first step, now that what could fail has not.

    Returns:
        whether the best model of the run so far, if there is one, is at the top

    Raises:
        OptionError: the disk is too full, or another run has the folder or has had it meanwhile.
    """
    # A run that goes on has one checkpoint at least.
    check_space(folder, model, checkpoints=1 if start.checkpoint else 2, freed=args.overwrite_output_dir)
    watched = lock.held
    folder.mkdir(parents=True, exist_ok=True)
    lock.take()
    if not watched and find_start(args, folder) != start:
        raise OptionError(
            f"--output_dir {folder} has been changed by another run since this one began: give the command again to see "
            "what there is now, or choose another folder."
        )
    if args.overwrite_output_dir:
        shutil.rmtree(folder)
        lock.release()
        folder.mkdir(parents=True)
        lock.take()
    tidy(folder)
    if aside := set_aside_newer(folder, progress.global_step if start.checkpoint else -1):
        logger.warning("No longer part of this run: %s.", ", ".join(str(path) for path in aside))
    (folder / METRICS_FILE).unlink(missing_ok=True)
    write_text(folder / CONFIG_FILE, args.to_yaml())
    if start.elsewhere is not None and (start.elsewhere / LOG_FILE).exists():
        shutil.copy(start.elsewhere / LOG_FILE, folder / LOG_FILE)
    if start.elsewhere is not None:
        logger.warning("The best model so far stays in %s: the next evaluation begins anew.", start.elsewhere)
        return False
    # A killed or abandoned continuation may have put a later one there.
    return put_back(folder, progress.best_step) or not aside
