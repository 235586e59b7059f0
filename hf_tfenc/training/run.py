"""A run from options to a finished output folder: data, tokenizer, model, training, results."""

import json
import logging
import os
import platform
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, broadcast_object_list, set_seed
from datasets import Dataset, DatasetDict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel, PreTrainedTokenizerBase, enable_full_determinism

from .. import __version__
from ..data.collators import numpy_column
from ..data.sources import Source, load_splits, load_stream
from ..data.stdlib_corpus import corpus_info
from ..data.streaming import EncodedStream
from ..memory import memory_for
from ..pretrained import read_config
from ..publish.card import data_card, renew_card, write_card
from ..publish.hub import Uploads
from ..publish.plots import PLOTS, plot_loss
from ..publish.sentence_transformers import write_modules
from ..tasks import TASKS, Measurement, Task
from ..tokenization import load_tokenizer, train_tokenizer
from .arguments import CONFIG_FILE, Arguments, OptionError, RunError, launch_command, parse_arguments
from .checkpointing import OutputFolder, SaveError, put_back, set_aside_newer, tidy, together, write_text
from .dry_run import dry_run
from .evaluation import Evaluation
from .lock import FolderLock
from .model import load_best, make_model
from .monitor import LOG_FILE, Monitor, clock
from .optimization import peak_learning_rate
from .preflight import check_folder, check_processes, check_rows, check_space
from .resume import METRICS_FILE, Start, check_options, check_same_run, find_start, run_facts
from .signals import EXIT_CODE, Interrupted, StopSignals
from .tracking import check_tracker, open_tracker
from .trainer import Progress, Trainer

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> None:
    """The program.

    It ends with 0 where all is done, with 2 and one line for a user's mistake, with 75 where a signal stopped it and it
    can go on, and with 130 for Ctrl-C before there was anything to save. A launcher may end with a code of its own.
    """
    ending_well(lambda: run(parse_arguments(argv)))


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
    accelerator = Accelerator(
        # None leaves it to `accelerate launch`.
        mixed_precision="bf16" if args.bf16 else "fp16" if args.fp16 else None,
        cpu=not torch.accelerator.is_available(),  # else processes on CPUs would not look for each other
        # NCCL's ten minutes are too few for the others while one process tokenizes some gigabytes.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=args.ddp_timeout))],
    )
    check_processes(accelerator)
    if args.lora_r and accelerator.distributed_type == DistributedType.FSDP:
        raise OptionError("--lora_r does not go with FSDP: what is trained is small, so use DDP.")
    check_tracker(args)
    say = accelerator.print
    quiet_libraries(accelerator)
    folder = Path(args.output_dir or "")
    # A dry run tells of the whole run, whatever there is of it already.
    start: Start = Start() if args.dry_run else on_main(accelerator, lambda: locked_start(args, folder, lock))
    check_options(start, args, accelerator.num_processes)
    check_folder(folder, accelerator)
    hardware = device_text(accelerator, set_threads(args, accelerator))
    say(hardware)

    kind = TASKS[args.task]
    saved = folder if start.finished else start.checkpoint
    if args.model_name_or_path and saved is None:
        read_config(args.model_name_or_path)  # before any long work
    with accelerator.main_process_first():  # the others then find what it has read and tokenized in the cache
        if args.streaming:
            text_stream, splits = load_stream(source_of(args), kind.columns(args))
        else:
            splits = load_splits(source_of(args), kind.columns(args), kind.built_in)
    tokenizer = make_tokenizer(args, accelerator, splits["train"], saved)
    task = kind(args, tokenizer)
    with accelerator.main_process_first():
        rows = task.encode_placed(splits)
    for name, encoded in rows.items():
        begins = "a stream that begins with " if args.streaming and name == "train" else ""
        count = f"{len(splits[name]):,} texts, {len(encoded):,} rows, {numpy_column(encoded, 'length').sum():,} tokens"
        say(f"{name}: {begins}{count}")
    stream = EncodedStream(text_stream, task.encode_texts, args.shuffle_buffer_size) if args.streaming else None

    enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)
    model = make_model(args, task, tokenizer, saved)
    check_rows(rows, model, tokenizer, task.token_columns)
    trained = model.num_parameters(only_trainable=True)
    part = f", {trained:,} of them trained" if args.lora_r else ""
    say(f"{saved or args.model_name_or_path or args.preset}: {model.num_parameters():,} parameters{part}")
    args.learning_rate = peak_learning_rate(model, args)
    set_seed(args.seed, device_specific=True)  # dropout differs between processes

    facts = run_facts(args, model.config, tokenizer, rows, accelerator, stream)
    progress = Progress(**start.state.get("progress", {}))
    if not check_same_run(start, facts, args):
        progress.consumed_bins = 0  # the rows of this epoch are others
    train_rows = rows["train"] if stream is None else stream
    trainer = Trainer(args, task, model, train_rows, rows["validation"], accelerator, signals, progress)
    if args.dry_run:
        say("\n" + "\n".join(dry_run(trainer, splits, rows)))
        del trainer  # as at the end of a run
        accelerator.free_memory()
        accelerator.end_training()
        return {}
    with signals.deferred():
        if start.finished:
            say(f"{folder} holds this run, finished; it is measured once more.")
            metrics = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
            if metrics.get("rows", facts["rows"]) != facts["rows"]:
                raise OptionError(
                    f"--output_dir {folder} holds a finished run on other rows: choose another folder, or remove that "
                    "run with --overwrite_output_dir."
                )
        else:
            if not on_main(accelerator, lambda: prepare_folder(args, folder, lock, model, start, progress)):
                progress.best_metric = None  # the next evaluation begins anew
            output = OutputFolder(folder, accelerator, tokenizer, args.save_total_limit, facts, uploads)
            output.changed = True  # to the start, so that it is known at once whether uploads go well
            output.publish(progress.global_step)
            baseline_loss = task.baseline_loss(rows["train"], rows["validation"])
            metrics = {"baseline_loss": baseline_loss, "rows": facts["rows"]}
            metrics |= train(trainer, output, baseline_loss, start)
        accelerator.wait_for_everyone()
        best = load_best(args, task, folder).to(accelerator.device)
        measured = measured_or_stopped(trainer.evaluation.measure(best, signals))
        metrics |= trainer.evaluation.metrics(measured)
        if "test" in rows and not start.finished:  # it is looked at once
            metrics |= test_metrics(args, task, best, rows["test"], accelerator, signals)
    if accelerator.is_main_process and not start.finished:
        metrics |= task.baselines(rows["train"], rows["validation"])
        if args.train_file is None and args.dataset_name is None:
            texts = {split: Dataset.from_dict({"text": [*kind.texts(part[:])]}) for split, part in splits.items()}
            # It differs a little from one Python version to the next.
            metrics["corpus"] = corpus_info(DatasetDict(texts))
        counts = split_counts(splits, rows, None if stream is None else trainer.progress.tokens)
        metrics |= {
            "parameters": best.num_parameters(),
            "train_tokens": counts["train"]["tokens"],
            "hardware": hardware,
        }
        metrics |= {"versions": facts["versions"] | {"hf_tfenc": __version__}, "data": counts}
        finish(args, task, best, rows["validation"], measured, metrics, folder)
    if accelerator.is_main_process:
        metrics["summary"] = task.summary(metrics)
        say("\n" + result_text(metrics, folder))
        if start.finished:
            renew_card(folder, args, best.config, metrics)
            say(f"\nTo run it again from the start: {launch_command(args, overwrite=True)}")
        if args.push_to_hub:
            say(uploads.finish())
    # torch may hang where a DistributedDataParallel model is freed after the processes have parted.
    del trainer
    accelerator.free_memory()
    accelerator.end_training()
    return metrics


def train(trainer: Trainer, output: OutputFolder, baseline_loss: float, start: Start) -> dict[str, Any]:
    """Train to the end, from the beginning or from a checkpoint."""
    accelerator, step = trainer.accelerator, trainer.progress.global_step
    epoch = "on a stream" if trainer.steps_per_epoch is None else f"{trainer.steps_per_epoch:,} an epoch"
    accelerator.print(
        f"{trainer.total_steps:,} steps, {epoch}; a model that only counts has a loss of {baseline_loss:.3f}"
    )
    if start.checkpoint is not None:
        trainer.restore(start.checkpoint, start.state)
        accelerator.print(f"It goes on from {start.checkpoint}, after step {step:,}.")
    log_file, is_main, log_bytes = output.path / LOG_FILE, accelerator.is_main_process, start.state.get("log_bytes", 0)
    opened: list[Monitor] = []

    def open_monitor() -> None:
        tracker = open_tracker(trainer.args, output.path, step) if is_main else None
        opened.append(Monitor(log_file, trainer.total_steps, baseline_loss, is_main, step, log_bytes, tracker))

    together(accelerator, open_monitor)
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
    return {name.replace("eval_", "test_", 1): value for name, value in metrics.items()}


# --- The pieces of a run ---------------------------------------------------------------------------------------------


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


def source_of(args: Arguments) -> Source:
    """The data that the options name."""
    return Source(**{f.name: getattr(args, f.name) for f in fields(Source) if hasattr(args, f.name)})


def make_tokenizer(
    args: Arguments, accelerator: Accelerator, train_texts: Any, saved: Path | None
) -> PreTrainedTokenizerBase:
    """The tokenizer the options name, the one that a run saved, or one trained on the training split alone."""
    named = args.tokenizer_name or (None if args.train_tokenizer else args.model_name_or_path) or saved
    if named is not None:
        return load_tokenizer(named)
    trained: list[Any] = [None]
    if accelerator.is_main_process:
        texts = Texts(train_texts, TASKS[args.task])
        trained[0] = train_tokenizer(texts, args.vocab_size, args.tokenizer_type, model_max_length=args.max_seq_length)
    broadcast_object_list(trained)
    return trained[0]


@dataclass
class Texts:
    """The texts of a split, read anew each time that they are asked for, so that they need not fit into memory."""

    rows: Dataset
    task: type[Task]

    def __iter__(self) -> Iterator[str]:
        for batch in self.rows.iter(batch_size=1000):
            yield from self.task.texts(batch)


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
        OptionError: the disk is too full, or another run has the folder.
    """
    # A run that goes on has one checkpoint at least.
    check_space(folder, model, checkpoints=1 if start.checkpoint else 2, freed=args.overwrite_output_dir)
    if args.overwrite_output_dir and folder.exists():
        lock.release()
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
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


def finish(
    args: Arguments,
    task: Task,
    model: PreTrainedModel,
    eval_rows: Any,
    measured: Measurement,
    metrics: dict[str, Any],
    folder: Path,
) -> None:
    """Write metrics, pictures, card, and what sentence-transformers reads."""
    metrics["hf_tfenc_task"], metrics["python_version"] = args.task, platform.python_version()
    model.eval()
    metrics["summary"], metrics["examples"] = task.summary(metrics), task.examples(model, eval_rows)
    metrics |= {"widget": task.widget(eval_rows), "data_card": data_card(args), "date": str(date.today())}
    plot_loss(folder / LOG_FILE, metrics["baseline_loss"], folder / "loss.png")
    if picture := task.picture(model, eval_rows, measured):
        PLOTS[picture.kind](picture.names, picture.numbers, folder / f"{picture.kind}.png")
    write_modules(model, folder)
    write_card(folder, args, model.config, metrics)
    write_text(folder / METRICS_FILE, json.dumps(metrics, indent=2) + "\n")  # last: it says that the run is finished


def split_counts(
    splits: DatasetDict, rows: DatasetDict, streamed_tokens: int | None
) -> dict[str, dict[str, int | None]]:
    """Rows of the source, encoded sequences and their tokens in each split; of a stream the tokens that were read."""
    counts: dict[str, dict[str, int | None]] = {
        name: {
            "rows": len(splits[name]),
            "sequences": len(encoded),
            "tokens": int(numpy_column(encoded, "length").sum()),
        }
        for name, encoded in rows.items()
    }
    if streamed_tokens is not None:
        counts["train"] = {"rows": None, "sequences": None, "tokens": streamed_tokens}
    return counts


def result_text(metrics: dict[str, Any], folder: Path) -> str:
    """What a run learned, where it lies, and what to do next."""
    kind = TASKS[metrics["hf_tfenc_task"]]
    program = "; ".join(
        ["import hf_tfenc", "from transformers import pipeline", *kind.usage(str(folder)).splitlines()]
    )
    return "\n".join(
        [
            *metrics["examples"],
            "",
            metrics["summary"],
            *test_lines(kind, metrics),
            f"trained in {clock(metrics['train_runtime'])} ({metrics['train_tokens_per_second']:,.0f} tokens/s)",
            "",
            f"The model is in {folder}: weights, tokenizer, code, card, metrics.json, log.jsonl, loss.png. Next:",
            f"  python -c {shlex.quote(program)}",
            f"  hf-tfenc demo {shlex.quote(str(folder))}",
            *(f"  {command}" for command in kind.next_steps(str(folder), built_in="corpus" in metrics)),
        ]
    )


def test_lines(kind: type[Task], metrics: dict[str, Any]) -> list[str]:
    """The metrics on the test split in a line, where there is one."""
    names = {name.replace("eval_", "test_", 1): what for name, what in kind.reported.items()}
    scores = [f"{what} {metrics[name]:.3f}" for name, what in names.items() if name in metrics]
    return ["test split: " + " · ".join(scores)] * bool(scores)


# --- The machine and its noise ---------------------------------------------------------------------------------------


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
