"""A run from options to a finished output folder: data, tokenizer, model, training, results."""

import json
import logging
import os
import platform
import shlex
import shutil
import sys
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from datasets import Dataset, DatasetDict
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase, enable_full_determinism

from ..configuration_tfenc import TfEncConfig
from ..data.sources import Source, load_splits
from ..data.stdlib_corpus import corpus_info
from ..presets import preset_config
from ..publish.card import write_card
from ..publish.hub import push_folder
from ..publish.plots import plot_loss
from ..tasks import TASKS, Task
from ..tokenization import load_tokenizer, train_tokenizer
from .arguments import Arguments, OptionError, parse_arguments
from .checkpointing import save_model, write_text
from .monitor import Monitor, clock
from .optimization import peak_learning_rate
from .trainer import Trainer

CONFIG_FILE, LOG_FILE, METRICS_FILE = "train_config.yaml", "log.jsonl", "metrics.json"
SETTLED = {"learning_rate"}  # options that the run itself settles where they are left open


def main(argv: list[str] | None = None) -> None:
    """The program. A user's mistake ends it with one line and exit code 2, Ctrl-C with one line and 130."""
    try:
        run(parse_arguments(argv))
    except (ValueError, OSError, StrictDataclassError) as error:
        if "HF_TFENC_TRACEBACK" in os.environ:
            raise
        print(f"Error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("Stopped. A model that was saved before stays in the output folder.", file=sys.stderr)
        sys.exit(130)


def run(args: Arguments) -> dict[str, Any]:
    """Train as `args` say. Returns the metrics, which also stand in the output folder's metrics.json.

    Raises:
        OptionError, ValueError, OSError: one sentence, before training starts.
    """
    accelerator = Accelerator(mixed_precision="bf16" if args.bf16 else "fp16" if args.fp16 else "no")
    say = accelerator.print
    quiet_libraries(accelerator)
    folder = Path(args.output_dir or "")
    if (finished := finished_metrics(args, folder)) is not None:
        say(f"{folder} holds this run, finished:\n")
        say(result_text(finished, folder))
        say(f"\nTo run it again: {launch_command(args, overwrite=True)}")
        return finished
    say(device_text(accelerator, set_threads(args, accelerator)))

    kind = TASKS[args.task]
    with accelerator.main_process_first():  # the others then find what it has read and tokenized in the cache
        source = Source(**{f.name: getattr(args, f.name) for f in fields(Source) if hasattr(args, f.name)})
        splits = load_splits(source, kind.columns(args), kind.built_in)
    tokenizer = make_tokenizer(args, accelerator, splits["train"])
    task = kind(args, tokenizer)
    with accelerator.main_process_first():
        encoded = task.encode(splits)
    train_rows, eval_rows = encoded["train"], encoded["validation"]
    for name, rows in encoded.items():
        say(f"{name}: {len(splits[name]):,} texts, {len(rows):,} rows, {sum(rows['length'][:]):,} tokens")

    enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)
    model = make_model(args, task, tokenizer)
    say(f"{args.model_name_or_path or args.preset}: {model.num_parameters():,} parameters")
    args.learning_rate = peak_learning_rate(model, args)
    baseline_loss = task.baseline_loss(train_rows, eval_rows)
    set_seed(args.seed, device_specific=True)  # dropout differs between processes

    if accelerator.is_main_process:
        if args.overwrite_output_dir and folder.exists():  # not earlier: what could fail has not
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / CONFIG_FILE, args.to_yaml())
    trainer = Trainer(args, task, model, train_rows, eval_rows, accelerator)
    say(
        f"{trainer.total_steps:,} steps, {trainer.steps_per_epoch:,} an epoch; "
        f"a model that only counts has a loss of {baseline_loss:.3f}"
    )
    monitor = Monitor(folder / LOG_FILE, trainer.total_steps, baseline_loss, accelerator.is_main_process)

    def keep(best: PreTrainedModel) -> None:
        if accelerator.is_main_process:
            save_model(best, tokenizer, folder)

    try:
        results = trainer.train(monitor, keep)
    finally:
        monitor.close()

    accelerator.wait_for_everyone()
    best = accelerator.unwrap_model(trainer.model)
    best.load_state_dict(type(best).from_pretrained(folder).state_dict())
    metrics: dict[str, Any] = trainer.evaluate() | results
    if accelerator.is_main_process:
        metrics |= task.baselines(train_rows, eval_rows)
        if args.train_file is None and args.dataset_name is None:
            texts = {split: Dataset.from_dict({"text": [*kind.texts(rows[:])]}) for split, rows in splits.items()}
            metrics["corpus"] = corpus_info(
                DatasetDict(texts)
            )  # it differs a little from one Python version to the next
        metrics |= {
            "baseline_loss": baseline_loss,
            "parameters": best.num_parameters(),
            "train_tokens": int(sum(train_rows["length"][:])),
        }
        report = finish(args, task, best, eval_rows, metrics, folder)
        say("\n" + report)
        if args.push_to_hub:
            say(push_folder(folder, str(args.hub_model_id)))
    # torch may hang where a DistributedDataParallel model is freed after the processes have parted.
    del trainer
    accelerator.free_memory()
    accelerator.end_training()
    return metrics


# --- The pieces of a run ---------------------------------------------------------------------------------------------


def make_tokenizer(args: Arguments, accelerator: Accelerator, train_texts: Any) -> PreTrainedTokenizerBase:
    """The tokenizer the options name, or one trained on the training split alone, the same in all processes."""
    named = args.tokenizer_name or args.model_name_or_path
    if named is not None:
        return load_tokenizer(named)
    trained: list[Any] = [None]
    if accelerator.is_main_process:
        texts = (text for batch in train_texts.iter(batch_size=1000) for text in TASKS[args.task].texts(batch))
        trained[0] = train_tokenizer(texts, args.vocab_size, args.tokenizer_type, model_max_length=args.max_seq_length)
    broadcast_object_list(trained)
    return trained[0]


def make_model(args: Arguments, task: Task, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model the options name, or a new one of the preset's shape.

    Raises:
        OptionError: the model is none of ours, the tokenizer has more tokens than it, or rows are longer than its
            positions reach.
    """
    overrides = task.config_options | args.parsed_config_overrides()
    attention = {"attn_implementation": args.attn_implementation} if args.attn_implementation else {}
    if args.model_name_or_path is not None:
        kind = AutoConfig.from_pretrained(args.model_name_or_path, trust_remote_code=False).model_type
        if kind != TfEncConfig.model_type:
            raise OptionError(
                f"--model_name_or_path {args.model_name_or_path} is a {kind} model, and train.py trains "
                f"{TfEncConfig.model_type} models: choose one of those, or leave the option out."
            )
        model = task.auto_class.from_pretrained(args.model_name_or_path, **overrides, **attention)
    else:
        config = preset_config(args.preset, **new_model_options(args, tokenizer) | overrides)
        model = task.auto_class.from_config(config, **attention)
    if len(tokenizer) > model.config.vocab_size:
        raise OptionError(
            f"The tokenizer has {len(tokenizer)} tokens, and the model's vocab_size is {model.config.vocab_size}: "
            "use the model's own tokenizer, or a larger vocab_size."
        )
    positions = model.config.max_position_embeddings
    if args.max_seq_length > positions and model.config.position_embedding_type in ("sinusoidal", "learned"):
        raise OptionError(
            f"--max_seq_length {args.max_seq_length} is longer than the model's {positions} positions: lower it."
        )
    return model


def new_model_options(args: Arguments, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a new model's configuration takes from the tokenizer and the rows."""
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "cls_token_id": tokenizer.cls_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "mask_token_id": tokenizer.mask_token_id,
        "max_position_embeddings": max(512, args.max_seq_length),
    }


def finish(
    args: Arguments, task: Task, model: PreTrainedModel, eval_rows: Any, metrics: dict[str, Any], folder: Path
) -> str:
    """Write metrics, picture and card, and return what is printed at the end."""
    metrics["hf_tfenc_task"], metrics["python_version"] = args.task, platform.python_version()
    model.eval()
    metrics["summary"], metrics["examples"] = task.summary(metrics), task.examples(model, eval_rows)
    plot_loss(folder / LOG_FILE, metrics["baseline_loss"], folder / "loss.png")
    write_card(folder, args, model, metrics)
    write_text(folder / METRICS_FILE, json.dumps(metrics, indent=2) + "\n")  # last: it says that the run is finished
    return result_text(metrics, folder)


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
            f"trained in {clock(metrics['train_runtime'])} ({metrics['train_tokens_per_second']:,.0f} tokens/s)",
            "",
            f"The model is in {folder}: weights, tokenizer, code, card, metrics.json, log.jsonl, loss.png. Next:",
            f"  python -c {shlex.quote(program)}",
            *(f"  {command}" for command in kind.next_steps(str(folder))),
        ]
    )


def finished_metrics(args: Arguments, folder: Path) -> dict[str, Any] | None:
    """The metrics of this very run where it is finished; None where the folder is free.

    Raises:
        OptionError: the folder holds something else.
    """
    config, metrics = folder / CONFIG_FILE, folder / METRICS_FILE
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not folder.is_dir() or not config.exists():
        raise OptionError(f"--output_dir {folder} holds something that is no run of train.py: choose another folder.")
    if args.overwrite_output_dir:
        return None
    if not metrics.exists():
        raise OptionError(
            f"--output_dir {folder} holds an unfinished run: --overwrite_output_dir removes it and starts afresh."
        )
    now, before = yaml.safe_load(args.to_yaml()), yaml.safe_load(config.read_text(encoding="utf-8"))
    for name, value in now.items():
        if before.get(name) != value and not (value is None and name in SETTLED):
            raise OptionError(
                f"--output_dir {folder} holds a finished run with {name} {before.get(name)}, not {value}: choose "
                "another folder, or remove that run with --overwrite_output_dir."
            )
    return json.loads(metrics.read_text(encoding="utf-8"))


def launch_command(args: Arguments, overwrite: bool = False) -> str:
    command = ["accelerate", "launch", "train.py", "--config", os.path.join(args.output_dir or "", CONFIG_FILE)]
    return shlex.join(command + ["--overwrite_output_dir"] * overwrite)


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
