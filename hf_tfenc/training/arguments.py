"""Every option, as dataclasses: a YAML file and the command line fill the same fields, the command line wins.

Names are those of `transformers.TrainingArguments` and of transformers' example scripts where the meaning is the same.
"""

import argparse
import contextlib
import dataclasses
import difflib
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import HfArgumentParser

from ..command import training_command
from ..configuration_tfenc import PROBLEM_TYPES, TfEncConfig
from ..data.masking import MASKINGS
from ..presets import PRESETS
from ..tasks import TASKS
from .optimization import OPTIMIZERS, SCHEDULES

PRESET = "modern-tiny"
CONFIG_FILE = "train_config.yaml"  # in an output folder, the options of its run
# Options that other tasks would ignore.
TASK_OPTIONS = {
    "text_pair_column": ("sequence-classification", "embedding"),
    "negative_column": ("embedding",),
    "label_column": ("sequence-classification", "token-classification", "embedding"),
    "problem_type": ("sequence-classification",),
    "mlm_masking": ("mlm",),
    "streaming": ("causal-lm", "mlm"),
    "packing": ("causal-lm", "mlm"),
}
# What others call some options.
ALIASES = {
    "batch_size": "per_device_train_batch_size", "epochs": "num_train_epochs", "lr": "learning_rate",
    "eval_strategy": "eval_steps", "save_strategy": "save_steps", "eval_file": "validation_file", "data": "train_file",
    "compile": "torch_compile", "max_length": "max_seq_length", "block_size": "max_seq_length", "model": "model_name_or_path",
}  # fmt: skip
STREAM_EVALUATIONS = 10  # of a run, where its epochs have no end that could be foreseen
# Options of `hf-tfenc eval`; the first of them are what the model was trained with, if not said otherwise.
AS_TRAINED = (
    "task", "text_column", "text_pair_column", "negative_column", "label_column", "sample_by", "max_seq_length",
    "problem_type", "eval_mlm_probability", "temperature", "bf16", "fp16",
)  # fmt: skip
EVALUATION_OPTIONS = (
    *AS_TRAINED, "test_file", "dataset_name", "dataset_config_name", "dataset_revision", "skip_bad_rows",
    "max_eval_samples", "per_device_eval_batch_size", "attn_implementation", "cpu_threads", "ddp_timeout", "output_dir",
)  # fmt: skip
EVALUATION_HELP = {
    "test_file": "what to measure on: a file, a folder, a pattern, or a list of these",
    "output_dir": "where metrics and predictions are written; MODEL/eval-NAME, by the name of the data, if not given",
}
LANGUAGE = "[a-z]{2,3}|code|multilingual"  # ISO 639, and what the Hub has besides
REPORTS = ("none", "tensorboard", "trackio", "wandb")
CUDA_GRAPHS = "reduce-overhead"  # torch's name of that mode of compiling
# Options of one call alone: a second run from the written file must not do the same once more.
ONE_CALL = ("overwrite_output_dir", "resume_from_checkpoint", "resume_with_changes", "dry_run")


class RunError(ValueError):
    """What ends a run in all of its processes alike, so that one of them says it; its message is for the user."""


class OptionError(RunError):
    """A mistake in the options or in what they point at; its message is one sentence for the user."""


def option(default: Any, help: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": help} | metadata)


@dataclass
class ModelArguments:
    preset: str | None = option(
        None, f"a named configuration; {PRESET} if there is no model_name_or_path", choices=sorted(PRESETS)
    )
    model_name_or_path: str | None = option(
        None, "start from this checkpoint (folder or Hub id; a BERT or ModernBERT too) and not from a preset"
    )
    config_overrides: str | None = option(
        None, 'changes to the configuration, as JSON or YAML: {"hidden_size": 192, "num_attention_heads": 3}'
    )
    attn_implementation: str | None = option(
        None,
        "varlen (if not given), sdpa, eager, flex_attention or flash_attention_2",
    )
    tokenizer_name: str | None = option(
        None, "use this tokenizer (folder or Hub id) and do not train one; a model that has another is fitted to it"
    )
    train_tokenizer: bool = option(
        False, "with model_name_or_path: train a tokenizer on the training text all the same, and fit the model to it"
    )
    tokenizer_type: Literal["byte-level-bpe", "wordpiece"] = option("byte-level-bpe", "the tokenizer to train")
    vocab_size: int = option(4096, "tokens of the tokenizer to train, special ones included")


@dataclass
class LoraArguments:
    lora_r: int | None = option(
        None, "with model_name_or_path: freeze the model, and train adapters of this rank beside its linear layers"
    )
    lora_alpha: float | None = option(None, "their scale times the rank; twice the rank if not given")
    lora_dropout: float = option(0.0, "dropout before them")
    lora_target_modules: list[str] | None = option(
        None, "the linear layers that have one, by name; all those in the layers if not given"
    )


@dataclass
class DataArguments:
    task: str = option("mlm", "what to learn", choices=sorted(TASKS))
    train_file: list[str] | None = option(
        None, "text, json(l), csv or parquet: files, folders or patterns; without it, the built-in corpus"
    )
    validation_file: list[str] | None = option(None, "the same for held-out text; without it, a share is held out")
    test_file: list[str] | None = option(None, "the same for text that is looked at once, at the end")
    dataset_name: str | None = option(None, "a data set on the Hub, or a folder like one, in place of train_file")
    dataset_config_name: str | None = option(None, "which of its configurations")
    dataset_revision: str | None = option(None, "which of its commits, branches or tags")
    text_column: str | None = option(None, "the column with the text (words, anchors), where its name does not say so")
    text_pair_column: str | None = option(None, "the column with the second text (positives)")
    negative_column: str | None = option(None, "embedding: the column with hard negatives")
    label_column: str | None = option(None, "the column with the labels (tags, scores)")
    skip_bad_rows: bool = option(False, "count rows that cannot be used, and go on without them")
    sample_by: Literal["document", "paragraph", "line"] = option("document", "what is one row of a text file")
    streaming: bool = option(
        False, "read text as it is needed and keep nothing on the disk: for mlm and causal-lm, with max_steps"
    )
    shuffle_buffer_size: int = option(
        10_000, "texts of a stream that are shuffled together; fewer where they are long"
    )
    max_train_samples: int | None = option(None, "use this many rows of text and no more")
    max_eval_samples: int | None = option(None, "use this many rows of held-out text and no more")
    max_seq_length: int = option(128, "tokens of a row, special ones included; longer text is cut into windows")
    problem_type: str | None = option(
        None, "what the labels of sequences are, where their type does not say so", choices=PROBLEM_TYPES
    )
    mlm_masking: str = option("token", "what training masks: tokens, whole words or spans", choices=list(MASKINGS))
    mlm_probability: float = option(0.3, "share of tokens masked in training")
    eval_mlm_probability: float = option(0.15, "share of tokens masked in evaluation, always the same ones")
    temperature: float = option(0.05, "embedding: what similarities are divided by in the loss")
    dataloader_num_workers: int = option(0, "processes that prepare batches; 0 prepares them in the training process")


@dataclass
class OptimizationArguments:
    packing: Literal["padded", "packed"] = option(
        "padded", "rows of a micro-batch padded to the longest, or packed one after another: for mlm and causal-lm"
    )
    per_device_train_batch_size: int = option(16, "rows of a micro-batch")
    tokens_per_batch: int | None = option(
        None, "tokens of a packed micro-batch; if not given, per_device_train_batch_size rows of max_seq_length"
    )
    per_device_eval_batch_size: int = option(32, "rows of an evaluation batch")
    gradient_accumulation_steps: int = option(1, "micro-batches of an optimizer step, in each process")
    num_train_epochs: int | None = option(
        None,
        "passes over the training rows; if not given, "
        + ", ".join(f"{task.epochs} for {name}" for name, task in sorted(TASKS.items())),
    )
    max_steps: int | None = option(None, "optimizer steps, in place of num_train_epochs")
    optim: str = option("muon", "the optimizer", choices=sorted(OPTIMIZERS))
    learning_rate: float | None = option(None, "the peak learning rate; 0.5 / hidden_size if not given")
    lr_scheduler_type: str = option("warmup_stable_decay", "how it falls", choices=sorted(SCHEDULES))
    warmup_steps: float = option(0.05, "steps over which it rises; below 1, a share of all steps")
    weight_decay: float | None = option(
        None, "decay of weight matrices, norms and biases have none; if not given 0.2, and 0 for adam"
    )
    adam_beta1: float = option(0.9, "decay of the mean of gradients")
    adam_beta2: float = option(0.98, "decay of the mean of squared gradients")
    adam_epsilon: float = option(1e-8, "added to the root of that mean")
    max_grad_norm: float = option(1.0, "gradients are scaled down to this norm; 0 leaves them as they are")


@dataclass
class RunArguments:
    output_dir: str | None = option(None, "where everything goes; outputs/<task> if not given")
    overwrite_output_dir: bool = option(False, "remove what an earlier run left there")
    eval_steps: int | None = option(
        None, "steps between evaluations; without it, once an epoch, or with streaming each tenth of max_steps"
    )
    logging_steps: int = option(20, "steps between lines of log.jsonl")
    save_steps: int | None = option(None, "steps between checkpoints; without it, one after each evaluation")
    save_total_limit: int = option(2, "checkpoints that stay, besides the one of the best model")
    resume_from_checkpoint: str = option(
        "auto", "auto goes on from the newest whole checkpoint of output_dir; none, or the path of one"
    )
    dry_run: bool = option(False, "say what the run will be, after ten steps of it, and write no output folder")
    resume_with_changes: bool = option(False, "go on from a checkpoint though data, model or options have changed")
    max_skipped_steps: int = option(20, "steps in a row skipped for a loss or gradient that is not finite, then stop")
    load_best_model_at_end: bool = option(True, "keep the best model, and not the last one")
    metric_for_best_model: str | None = option(
        None, "what says which is the best, such as loss, accuracy or f1; if not given, what suits the task"
    )
    seed: int = option(42, "of weights, order, masks and dropout")
    bf16: bool = option(False, "compute in bfloat16 where it is safe")
    fp16: bool = option(False, "compute in float16 where it is safe, with loss scaling")
    torch_compile: bool = option(False, "compile training: packed batches, which have one shape, make one graph")
    torch_compile_mode: Literal["default", "reduce-overhead"] = option(
        "default", "how: reduce-overhead starts it as CUDA graphs, for small packed batches on one GPU"
    )
    gradient_checkpointing: bool = option(
        False, "keep each layer's input alone and compute the rest again: less memory, more time"
    )
    full_determinism: bool = option(False, "the same bits on the same GPU, slower")
    cpu_threads: int | None = option(None, "threads of each process on a CPU; by default the cores over the processes")
    ddp_timeout: int = option(7200, "seconds that a process waits for the others, as while one of them tokenizes")
    report_to: str = option(
        "none", "show the run by this tracker too, which is a package of its own", choices=list(REPORTS)
    )
    push_to_hub: bool = option(False, "upload the folder without its training state, while it goes on and at the end")
    hub_model_id: str | None = option(None, "where to, as user/name")
    hub_strategy: Literal["every_save", "all_checkpoints", "end"] = option(
        "every_save", "when: at each new best model or checkpoint, the same with all checkpoints, or at the end alone"
    )
    hub_private_repo: bool = option(
        True, "upload to a private repository and to no other; turned off, a new one is public"
    )
    quote_examples: bool = option(
        True, "show held-out texts in card, metrics.json and pictures; turn it off where they are not for others"
    )
    license: str | None = option(None, "of the model, for its card: apache-2.0, mit, …")
    language: list[str] | None = option(None, "of the text, for the card: en, de, …")


@dataclass
class Arguments(RunArguments, OptimizationArguments, DataArguments, LoraArguments, ModelArguments):
    """All options. What cannot work is refused as soon as they are made."""

    def __post_init__(self) -> None:
        if self.output_dir is None:
            self.output_dir = os.path.join("outputs", self.task)
        for name in ("output_dir", "resume_from_checkpoint", "model_name_or_path", "tokenizer_name"):
            if value := getattr(self, name):  # no shell reads a YAML file
                setattr(self, name, os.path.expanduser(value))
        if self.num_train_epochs is None and self.task in TASKS:
            self.num_train_epochs = TASKS[self.task].epochs
        self._refuse()
        if self.preset is None and self.model_name_or_path is None:
            self.preset = PRESET
        if self.streaming and self.max_steps is not None and self.eval_steps is None:
            self.eval_steps = max(1, self.max_steps // STREAM_EVALUATIONS)

    def _refuse(self) -> None:
        positive = (
            "vocab_size", "max_seq_length", "per_device_train_batch_size", "tokens_per_batch", "per_device_eval_batch_size",
            "gradient_accumulation_steps", "num_train_epochs", "max_steps", "eval_steps", "save_steps",
            "save_total_limit", "max_skipped_steps", "logging_steps", "cpu_threads", "max_train_samples",
            "max_eval_samples", "shuffle_buffer_size", "learning_rate", "adam_epsilon", "temperature", "lora_r",
            "lora_alpha", "ddp_timeout",
        )  # fmt: skip
        for name in positive:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise OptionError(f"--{name} is {value}; it must be above 0.")
        for name in ("warmup_steps", "weight_decay", "max_grad_norm", "dataloader_num_workers", "seed"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise OptionError(f"--{name} is {value}; it must not be below 0.")
        for name in ("mlm_probability", "eval_mlm_probability"):
            if not 0 < getattr(self, name) < 1:
                raise OptionError(f"--{name} is {getattr(self, name)}; it is a share, between 0 and 1.")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise OptionError(f"--{name} is {getattr(self, name)}; it must be at least 0 and below 1.")
        if self.max_seq_length < 8:
            raise OptionError(f"--max_seq_length is {self.max_seq_length}; rows need at least 8 tokens.")
        for name, allowed in (
            ("task", tuple(TASKS)),
            ("packing", ("padded", "packed")),
            ("torch_compile_mode", ("default", CUDA_GRAPHS)),
            ("problem_type", (None, *PROBLEM_TYPES)),
            ("mlm_masking", tuple(MASKINGS)),
            ("report_to", REPORTS),
        ):
            if getattr(self, name) not in allowed:
                raise OptionError(
                    f"--{name} is {getattr(self, name)!r}; it is one of {', '.join(filter(None, allowed))}."
                )
        for name, tasks in TASK_OPTIONS.items():
            if getattr(self, name) != getattr(type(self), name) and self.task not in tasks:
                raise OptionError(f"--{name} is for --task {_listed(tasks)}; the task is {self.task}.")
        if self.metric_for_best_model is not None:
            known = [name.removeprefix("eval_") for name in TASKS[self.task].reported]
            if self.metric_for_best_model.removeprefix("eval_") not in known:
                raise OptionError(
                    f"--metric_for_best_model {self.metric_for_best_model} is no metric of --task {self.task}; "
                    f"{', '.join(known)} are."
                )
        if self.streaming:
            self._refuse_for_stream()
        self._refuse_for_packing()
        if self.torch_compile_mode != "default" and not self.torch_compile:
            raise OptionError(
                f"--torch_compile_mode {self.torch_compile_mode} needs --torch_compile: add it, or choose the mode default."
            )
        if self.bf16 and self.fp16:
            raise OptionError("--bf16 and --fp16 exclude each other: choose one.")
        if self.preset and self.model_name_or_path:
            raise OptionError(
                f"--preset {self.preset} is for a new model, and --model_name_or_path {self.model_name_or_path} has a "
                "shape of its own: leave one of the two out."
            )
        if not 0 <= self.lora_dropout < 1:
            raise OptionError(f"--lora_dropout is {self.lora_dropout}; it must be at least 0 and below 1.")
        if self.lora_r is None and (self.lora_alpha or self.lora_dropout or self.lora_target_modules):
            raise OptionError("--lora_alpha, --lora_dropout and --lora_target_modules need --lora_r, the rank.")
        if self.lora_r and not self.model_name_or_path:
            raise OptionError("--lora_r is for --model_name_or_path: adapters need a trained model beside them.")
        if self.lora_r and (self.train_tokenizer or self.tokenizer_name):
            raise OptionError("--lora_r freezes the embeddings, and another tokenizer wants them trained: choose one.")
        if self.train_tokenizer and self.tokenizer_name:
            raise OptionError("--train_tokenizer and --tokenizer_name exclude each other: choose one.")
        if self.train_tokenizer and not self.model_name_or_path:
            raise OptionError("--train_tokenizer is for --model_name_or_path: without it, one is trained anyway.")
        if self.push_to_hub and not self.hub_model_id:
            raise OptionError("--push_to_hub needs --hub_model_id user/name to know where to.")
        if self.hub_model_id is not None:
            check_repo_id(self.hub_model_id)
        for name, pattern, example in (("license", r"[a-z0-9.-]+", "apache-2.0"), ("language", LANGUAGE, "en")):
            values = getattr(self, name) or []
            for value in [values] if isinstance(values, str) else values:
                if not re.fullmatch(pattern, value):
                    raise OptionError(f"--{name} is {value!r}; the Hub writes it in the manner of {example}.")
        self.parsed_config_overrides()

    @property
    def packed_tokens(self) -> int:
        """Tokens of a packed micro-batch."""
        return self.tokens_per_batch or self.per_device_train_batch_size * self.max_seq_length

    def _refuse_for_packing(self) -> None:
        if self.packing == "padded":
            if self.tokens_per_batch is not None:
                raise OptionError("--tokens_per_batch is for --packing packed: without it, a batch has rows.")
            if self.torch_compile_mode == CUDA_GRAPHS:
                raise OptionError(
                    f"--torch_compile_mode {CUDA_GRAPHS} is for --packing packed, whose batches have one shape: choose "
                    "that, or the mode default."
                )
            return
        if self.streaming:
            raise OptionError("--packing packed needs to know how long rows are, and nobody knows it of a stream.")
        if self.packed_tokens < self.max_seq_length:
            raise OptionError(
                f"--tokens_per_batch {self.tokens_per_batch} is less than a row of --max_seq_length "
                f"{self.max_seq_length} tokens: raise it."
            )

    def _refuse_for_stream(self) -> None:
        if self.train_file is None and self.dataset_name is None:
            raise OptionError("--streaming has nothing to read: give --train_file or --dataset_name, or leave it out.")
        if self.max_steps is None:
            raise OptionError("--streaming needs --max_steps, for nobody knows how long the stream is.")
        if self.dry_run:
            raise OptionError(
                "--dry_run counts rows, and nobody knows how many a stream has: leave one of the two out."
            )
        if self.max_train_samples is not None:
            raise OptionError("--max_train_samples is not for --streaming: --max_steps says how far it is read.")

    def parsed_config_overrides(self) -> dict[str, Any]:
        """`config_overrides` as a mapping. Raises OptionError where it is none."""
        return parsed_overrides(self.config_overrides)

    def to_yaml(self) -> str:
        """All options of the run, to be read again with `--config`."""
        options = dataclasses.asdict(self)
        for name in ONE_CALL:
            del options[name]
        return yaml.safe_dump(options, sort_keys=False, allow_unicode=True)


def check_repo_id(repo_id: str) -> None:
    """Raises OptionError where a name is none that a repository can have, with a user or an organization before it."""
    try:
        validate_repo_id(repo_id)
        fits = "/" in repo_id
    except HFValidationError:
        fits = False
    if not fits:
        raise OptionError(
            f"--hub_model_id is {repo_id!r}; it is of the form user/name, of letters, digits, '-', '_' and '.'."
        )


def parsed_overrides(text: str | None) -> dict[str, Any]:
    """The mapping that `--config_overrides` is. Raises OptionError where it is none, or not of an architecture."""
    overrides: Any = None
    try:
        overrides = json.loads(text or "{}")  # to YAML, 1e-12 is a string
    except json.JSONDecodeError:
        with contextlib.suppress(yaml.YAMLError):
            overrides = yaml.safe_load(text or "")
    if not isinstance(overrides, dict):
        raise OptionError(f"--config_overrides {text!r} is no mapping; write it as '{{\"hidden_size\": 192}}'.")
    if strangers := sorted(overrides.keys() & TfEncConfig.foreign_names()):
        raise OptionError(f"--config_overrides {strangers[0]} is no option of an architecture: leave it out.")
    return overrides


def launch_command(args: Arguments, overwrite: bool = False) -> str:
    """What goes on with a run, or runs it again from the start."""
    config = os.path.join(args.output_dir or "", CONFIG_FILE)
    return f"{training_command()} --config {shlex.quote(config)}" + " --overwrite_output_dir" * overwrite


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


class _Parser(HfArgumentParser):
    """argparse with the nearest known name for an unknown one, and a sentence in place of the usage text."""

    def error(self, message: str) -> None:  # type: ignore[override]
        message = re.sub(r"/--[\w-]+", "", message)  # the same name, written with dashes
        raise OptionError(message[0].upper() + message[1:].rstrip(".") + ". --help lists the options.")


def parse_arguments(argv: list[str] | None = None) -> Arguments:
    """Options from the command line, over those of the YAML file that `--config` names.

    Raises:
        OptionError: an unknown name or a value that does not fit, in one sentence.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    known = {f.name for f in dataclasses.fields(Arguments)}
    finder = _Parser([], add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    config, rest = finder.parse_known_args(argv)
    _refuse_unknown(rest, known)
    usage = f"{training_command()} [--config FILE.yaml] [--option value ...]"
    example = f"For example: {training_command()} --train_file my_texts/ --output_dir outputs/mine"
    parser = _Parser(Arguments, prog="train.py", usage=usage, description=example, allow_abbrev=False)
    parser.add_argument("--config", help="a YAML file of options; recipes/ holds some")
    # The file's options become arguments before the user's own: one parser checks both, and the later one wins.
    return _parsed(parser, _file_arguments(config.config, known) + rest)


def parse_evaluation(argv: list[str], trained: Callable[[str], dict[str, Any]]) -> Arguments:
    """Options of `hf-tfenc eval MODEL --option value ...`, over those that the model was trained with.

    Args:
        trained: from a model's folder or Hub id to the options of its training, none where they are not known

    Returns:
        options with the model as `model_name_or_path`, and an empty `output_dir` where none is given

    Raises:
        OptionError: as `parse_arguments`, or the model or its task is not said.
    """
    usage = "hf-tfenc eval MODEL [--option value ...]"
    example = "For example: hf-tfenc eval outputs/mlm --test_file other.txt"
    parser = _Parser(Arguments, prog="hf-tfenc eval", usage=usage, description=example, allow_abbrev=False)
    for action in parser._actions:
        if action.dest not in (*EVALUATION_OPTIONS, "help"):
            action.help = argparse.SUPPRESS
        action.help = EVALUATION_HELP.get(action.dest, action.help)
    if "--help" in argv or "-h" in argv:
        for action in parser._actions:
            if action.dest in AS_TRAINED:
                action.help, action.default = f"{action.help}; as in training, if not given", argparse.SUPPRESS
        parser.parse_args(["--help"])
    if not argv or argv[0].startswith("-"):
        raise OptionError(f"The model comes first, a folder or a Hub id: {usage}.")
    model, *rest = argv
    _refuse_unknown(rest, set(EVALUATION_OPTIONS))
    finder = _Parser([], add_help=False, allow_abbrev=False)
    finder.add_argument("--task")
    options = trained(model)
    task = finder.parse_known_args(rest)[0].task or options.get("task")
    if task is None:
        raise OptionError(f"{model} holds no train_config.yaml that says what it was trained for: give its --task.")
    if task != options.get("task"):
        options = {}  # its columns are those of another task
    kept = {name: value for name, value in options.items() if name in AS_TRAINED} | {"task": task, "output_dir": ""}
    return _parsed(parser, [f"--model_name_or_path={model}", *_as_arguments(kept), *rest])


def _refuse_unknown(argv: list[str], known: set[str]) -> None:
    for token in argv:
        name = token[2:].split("=")[0].replace("-", "_")
        if token.startswith("--") and name != "help" and name.removeprefix("no_") not in known:
            raise OptionError(f"{token.split('=')[0]} is not an option.{_nearest(name, known, '--')}")


def _parsed(parser: "_Parser", argv: list[str]) -> Arguments:
    args, *_, unused = parser.parse_args_into_dataclasses(
        argv, return_remaining_strings=True, look_for_args_file=False
    )
    if unused:
        raise OptionError(f"{unused[0]} is neither an option nor the value of one. --help lists the options.")
    return args


def _file_arguments(path: str | None, known: set[str]) -> list[str]:
    if path is None:
        return []
    try:
        options = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise OptionError(f"--config {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OptionError(f"--config {path} is no YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(options, dict):
        raise OptionError(f"--config {path} is no list of options; write lines such as 'learning_rate: 0.001'.")
    for name in options:
        if name not in known:
            raise OptionError(f"{name} in {path} is not an option.{_nearest(str(name), known, '')}")
    return _as_arguments(options)


def _as_arguments(options: dict[str, Any]) -> list[str]:
    arguments: list[str] = []
    for name, value in options.items():
        if value is None:
            continue
        if isinstance(value, dict):
            value = json.dumps(value)
        if isinstance(value, list):
            if strangers := [item for item in value if str(item).startswith("--")]:
                raise OptionError(
                    f"{name} holds {strangers[0]!r}, which looks like an option: write it as ./{strangers[0]}."
                )
            arguments += [f"--{name}", *map(str, value)]
        else:
            arguments.append(f"--{name}={value}")  # so that a value may begin with a dash
    return arguments


def _nearest(name: str, known: set[str], prefix: str) -> str:
    nearest = [ALIASES[name]] if name in ALIASES else difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return f" Did you mean {prefix}{nearest[0]}?" if nearest else " --help lists the options."
