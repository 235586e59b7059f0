"""What `hf-tfenc eval` does: measure a trained model on some data, and write down what it says of each row."""

import json
import logging
import os
import re
import time
from pathlib import Path
from typing import Any

import yaml
from datasets import DatasetDict
from transformers import PreTrainedModel
from transformers.utils import cached_file

from .data.collators import numpy_column
from .data.compression import uncompressed_name
from .data.sources import load_split
from .memory import memory_for
from .pretrained import load_whole, read_config
from .tasks import TASKS, Task
from .tokenization import load_tokenizer
from .training.arguments import Arguments, OptionError, parse_evaluation
from .training.checkpointing import write_text
from .training.ending import ending_well
from .training.evaluation import Evaluation
from .training.machine import device_text, make_accelerator, quiet_libraries, set_threads
from .training.model import attention_options, check_kind
from .training.preflight import check_folder, check_rows
from .training.processes import main_first
from .training.reading import source_of
from .training.resume import CONFIG_FILE, METRICS_FILE

logger = logging.getLogger(__name__)

PREDICTIONS_FILE = "predictions.jsonl"


def main(argv: list[str]) -> None:
    """The program; it ends as train.py does."""
    ending_well(lambda: evaluate(parse_evaluation(argv, trained_with)))


def evaluate(args: Arguments) -> dict[str, Any]:
    """Measure the model `args.model_name_or_path` on the data that `args` name.

    Leaves `metrics.json` and `predictions.jsonl` in the output folder: the task's metrics with the number of rows, and
    a JSON object for each row, in their order. A row's number, from 1, is that of its file: rows that were left out
    count, and several files are counted through.

    Returns:
        the metrics

    Raises:
        OptionError, ValueError, OSError: one sentence, and nothing is written.
    """
    accelerator = make_accelerator(args)
    quiet_libraries(accelerator)
    say, kind, folder = accelerator.print, TASKS[args.task], output_folder(args)
    say(device_text(accelerator, set_threads(args, accelerator)))
    tokenizer = load_tokenizer(str(args.model_name_or_path))
    check_kind(str(args.model_name_or_path), str(args.model_name_or_path))
    task = kind(args, tokenizer)
    model = load_model(args, task)
    splits = main_first(accelerator, lambda: load_split(source_of(args), kind.columns(args)))
    source, rows = splits["test"], main_first(accelerator, lambda: task.encode_placed(splits))["test"]
    check_rows(DatasetDict(test=rows), model, tokenizer, task.token_columns)
    check_folder(folder, accelerator)
    say(f"{len(source):,} rows, {numpy_column(rows, 'length').sum():,} tokens")

    started = time.monotonic()
    evaluation = Evaluation(task, rows, args.per_device_eval_batch_size, accelerator)
    with memory_for(f"--per_device_eval_batch_size {args.per_device_eval_batch_size}", "halve it"):
        measured = evaluation.measure(model.to(accelerator.device))
    assert measured is not None  # no signal was asked
    metrics: dict[str, Any] = evaluation.metrics(measured)
    metrics |= {"eval_samples": len(source), "eval_tokens": int(numpy_column(rows, "length").sum())}
    metrics["eval_runtime"] = time.monotonic() - started
    metrics |= what_is_measured(args)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        records = task.predictions(measured, source, rows)
        records = (record | {"row": int(splits.numbers["test"][record["row"] - 1])} for record in records)
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        (folder / METRICS_FILE).unlink(missing_ok=True)  # never beside the predictions of another call
        write_text(folder / PREDICTIONS_FILE, "".join(lines))
        write_text(folder / METRICS_FILE, json.dumps(metrics, indent=2) + "\n")
    for name, what in kind.reported.items():
        if name in metrics:
            say(f"{what}: {metrics[name]:.4f}")
    say(f"{METRICS_FILE} and {PREDICTIONS_FILE} are in {folder}.")
    accelerator.end_training()
    return metrics


def load_model(args: Arguments, task: Task) -> PreTrainedModel:
    """The trained model, from which the task takes what it needs.

    Raises:
        OSError: it has no head for this task, or is damaged.
    """
    absent = (
        f"{args.model_name_or_path} was not trained for --task {args.task}, and lacks weights for it: name the task that "
        "it was trained for, or train it for this one first."
    )
    model = load_whole(task.auto_class, str(args.model_name_or_path), absent, **attention_options(args))
    task.adopt(model.config)
    return model


def trained_with(model: str) -> dict[str, Any]:
    """The options that a model was trained with, from the file in its folder or repository; none where there is none.

    Raises:
        ValueError, OSError: there is no model, here or on the Hub, or none of ours; it would seem to lack a task.
    """
    read_config(model)
    try:
        path = cached_file(model, CONFIG_FILE, _raise_exceptions_for_missing_entries=False)
        options = yaml.safe_load(Path(path).read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError, yaml.YAMLError):  # what else is wrong with the model is said where it is loaded
        return {}
    return options if isinstance(options, dict) else {}


def measured_data(args: Arguments) -> list[str]:
    """The files, or the data set with its configuration and revision, that are measured."""
    hub = [args.dataset_name or "data", args.dataset_config_name, args.dataset_revision]
    return [os.path.abspath(file) for file in args.test_file or []] or list(filter(None, hub))


def what_is_measured(args: Arguments) -> dict[str, Any]:
    """What tells an evaluation from another one."""
    return {"hf_tfenc_task": args.task, "model": str(args.model_name_or_path), "data": measured_data(args)}


def output_folder(args: Arguments) -> Path:
    """The folder given, or one beside the model's own files that is named after the data.

    Raises:
        OptionError: it holds a run, or that one the metrics of other data of this name.
    """
    if args.output_dir:
        folder = Path(args.output_dir)
        if (folder / CONFIG_FILE).exists():
            raise OptionError(f"--output_dir {folder} holds a run with metrics of its own: choose another folder.")
        return folder
    data = measured_data(args)
    name = re.sub(r"[^\w.-]+", "-", uncompressed_name(Path(data[0])).stem).strip("-.") or "data"
    model = Path(str(args.model_name_or_path))
    folder = (model if model.is_dir() else Path("outputs") / model.name) / f"eval-{name}"
    if (folder / METRICS_FILE).exists():
        before = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
        for what, now in what_is_measured(args).items():
            if before.get(what, now) != now:
                then = (
                    ", ".join(before[what]) if what == "data" else f"{what.removeprefix('hf_tfenc_')} {before[what]}"
                )
                raise OptionError(f"{folder} holds the metrics of {then}: give another --output_dir.")
    return folder
