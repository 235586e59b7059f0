"""Where a run begins: afresh, from a checkpoint, or at its end; and whether it is still the run of that checkpoint."""

import glob
import hashlib
import json
import logging
import platform
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
import transformers
import yaml
from accelerate import Accelerator
from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..data.streaming import EncodedStream
from ..tokenization import tokenizer_digest
from .arguments import CONFIG_FILE, Arguments, OptionError
from .checkpointing import CheckpointError, checkpoints, newest_whole, read_state, tidy, verify

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"  # says that a run is finished
# Options that leave every step as it is.
FREE_OPTIONS = {
    "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "resume_with_changes", "eval_steps", "save_steps",
    "save_total_limit", "logging_steps", "load_best_model_at_end", "max_skipped_steps", "dataloader_num_workers",
    "per_device_eval_batch_size", "cpu_threads", "push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "license", "language",
    "report_to", "ddp_timeout", "quote_examples",
}  # fmt: skip
# Options whose outcome is compared itself, as rows and tokenizer: data may move.
COMPARED_OPTIONS = {
    "train_file", "validation_file", "test_file", "dataset_name", "dataset_config_name", "dataset_revision",
    "tokenizer_name", "text_column", "text_pair_column", "negative_column", "label_column", "sample_by",
    "skip_bad_rows", "max_train_samples", "max_eval_samples",
}  # fmt: skip
READ_OPTIONS = (
    "resume_from_checkpoint", "train_file", "validation_file", "test_file", "dataset_name", "model_name_or_path",
    "tokenizer_name",
)  # fmt: skip
# Options that change results in their last bits alone.
BITS_OPTIONS = {
    "full_determinism", "attn_implementation", "torch_compile", "torch_compile_mode", "gradient_checkpointing",
}  # fmt: skip
# Options of what a run makes once, at its beginning.
SETTLED_AT_START = {"vocab_size", "tokenizer_type", "train_tokenizer"}
SETTLED = {"learning_rate"}  # options that the run itself settles where they are left open
VOLATILE = {"transformers_version", "_name_or_path", "dtype", "architectures", "auto_map"}  # of a configuration


class Start(NamedTuple):
    """Where a run begins."""

    checkpoint: Path | None = None
    state: dict[str, Any] = {}  # what the checkpoint holds besides tensors
    elsewhere: Path | None = None  # the folder of that checkpoint, if it is not the output folder
    finished: bool = False  # nothing is left to train


def find_start(args: Arguments, folder: Path) -> Start:
    """What `--resume_from_checkpoint` and the output folder's content come to.

    Raises:
        OptionError: the folder holds something else, or the checkpoint named is not whole.
    """
    check_output(args, folder)
    if args.resume_from_checkpoint not in ("auto", "none"):
        return _start_from(Path(args.resume_from_checkpoint), args, folder)
    if args.overwrite_output_dir or not (folder / CONFIG_FILE).exists():
        return Start()
    if (folder / METRICS_FILE).exists():
        return Start(finished=True)
    tidy(folder)
    newest = newest_whole(folder)
    if newest is None:
        logger.warning("%s holds an unfinished run without a whole checkpoint: it starts afresh.", folder)
        return Start()
    return Start(newest, read_state(newest))


def check_output(args: Arguments, folder: Path) -> None:
    """Raises OptionError where the output folder holds something that the run can neither go on with nor replace."""
    # What is hidden is a killed process's, which had not come further.
    holds_something = folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
    if (folder.exists() and not folder.is_dir()) or (holds_something and not (folder / CONFIG_FILE).exists()):
        raise OptionError(f"--output_dir {folder} holds something that is no run of train.py: choose another folder.")
    if args.overwrite_output_dir:
        _refuse_to_remove_sources(args, folder)
    elif (folder / CONFIG_FILE).exists() and args.resume_from_checkpoint in ("auto", "none"):
        finished = (folder / METRICS_FILE).exists()
        if args.resume_from_checkpoint == "none":
            raise OptionError(
                f"--output_dir {folder} holds {'a finished' if finished else 'an unfinished'} run: "
                "--resume_from_checkpoint auto goes on with it, --overwrite_output_dir removes it."
            )
        if finished:
            _refuse_another_run(args, folder)


def _start_from(path: Path, args: Arguments, folder: Path) -> Start:
    if not path.is_dir():
        raise OptionError(f"--resume_from_checkpoint {path} is no folder: give that of a checkpoint, auto or none.")
    if found := checkpoints(path):
        raise OptionError(f"--resume_from_checkpoint {path} holds checkpoints: give one of them, such as {found[-1]}.")
    inside = path.resolve().parent == folder.resolve()
    if not inside and not args.overwrite_output_dir and (folder / CONFIG_FILE).exists():
        raise OptionError(f"--output_dir {folder} holds another run than that of {path}: choose another folder.")
    try:
        verify(path)
    except CheckpointError as error:
        raise OptionError(f"--resume_from_checkpoint {path}: {error}. Give another one, or auto.") from error
    return Start(path, read_state(path), None if inside else path.parent)


def _refuse_to_remove_sources(args: Arguments, folder: Path) -> None:
    """Raises OptionError where the output folder to be removed holds what the run is to be made of."""
    for name in READ_OPTIONS:
        values = getattr(args, name)
        for value in values if isinstance(values, list) else [values or ""]:
            path = Path(value).expanduser()
            named = [path] if path.exists() else map(Path, glob.glob(str(path), recursive=True))
            if value and any(folder.resolve() in (source, *source.parents) for source in map(Path.resolve, named)):
                raise OptionError(f"--overwrite_output_dir would remove --{name} {value}: leave one of the two out.")


def _refuse_another_run(args: Arguments, folder: Path) -> None:
    then = yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    for name, (before, now) in differing_options(then, yaml.safe_load(args.to_yaml())).items():
        if name not in FREE_OPTIONS - {"load_best_model_at_end", "quote_examples"}:
            go_on = ", or go on with it from one of its checkpoints with --resume_from_checkpoint PATH --resume_with_changes"
            raise OptionError(
                f"--output_dir {folder} holds a finished run with {name} {before}, not {now}: choose another folder, or "
                f"remove that run with --overwrite_output_dir{go_on * (name not in SETTLED_AT_START)}."
            )


def differing_options(then: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Options that were something else then; one that is left open now may have been settled by the run."""
    return {
        name: (then[name], value)
        for name, value in now.items()
        if name in then and then[name] != value and not (value is None and name in SETTLED)
    }


def run_facts(
    args: Arguments,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    rows: dict[str, Dataset],
    accelerator: Accelerator,
    stream: EncodedStream | None = None,
) -> dict[str, Any]:
    """What a checkpoint notes of its run, as it comes back from JSON. Of a stream, `rows` hold the beginning."""
    digests = {split: rows_digest(encoded) for split, encoded in rows.items()}
    if stream is not None:
        digests["train"] += f" and a stream {stream.digest()}"
    facts = {
        "options": yaml.safe_load(args.to_yaml()),
        "rows": digests,
        "tokenizer": tokenizer_digest(tokenizer),
        "config": {name: value for name, value in config.to_dict().items() if name not in VOLATILE},
        "processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
        "threads": torch.get_num_threads() if accelerator.device.type == "cpu" else None,
        "device": device_name(accelerator),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    return json.loads(json.dumps(facts))


def check_options(start: Start, args: Arguments, processes: int) -> None:
    """Compare the options of a checkpoint's run with those of now, before any long work.

    Raises:
        OptionError: one that matters has changed, and `--resume_with_changes` is not set.
    """
    if start.checkpoint is None:
        return
    then = start.state["run"]
    options = differing_options(then["options"], yaml.safe_load(args.to_yaml()))
    if _bins_per_step(then) == processes * args.gradient_accumulation_steps or then["processes"] != processes:
        options.pop("gradient_accumulation_steps", None)
    if fixed := [_change(name, *options[name]) for name in options if name in SETTLED_AT_START]:
        raise OptionError(
            f"{start.checkpoint} has a tokenizer and a model of that tokenizer's size, which cannot change "
            f"({'; '.join(fixed)}): go back to what it was, or choose another --output_dir."
        )
    changes = [
        _change(name, *options[name]) for name in options if name not in FREE_OPTIONS | COMPARED_OPTIONS | BITS_OPTIONS
    ]
    _refuse_or_warn(changes, start.checkpoint, args)


def check_same_run(start: Start, now: dict[str, Any], args: Arguments) -> bool:
    """Compare what a checkpoint notes of its run with what it is now, and warn of what changes bits alone.

    Returns:
        whether an epoch that was begun can be gone on with: the rows and their order are the same

    Raises:
        OptionError: rows, tokenizer or model have changed, and `--resume_with_changes` is not set.
    """
    if start.checkpoint is None:
        return True
    then = start.state["run"]
    changes = [
        f"other rows in the {split} split"
        for split, found in then["rows"].items()
        if now["rows"].get(split, found) != found  # a test split may come and go
    ]
    options = differing_options(then["options"], now["options"])
    changes += [_change(name, *options[name]) for name in SETTLED & options.keys()]
    changes += ["another tokenizer"] * (then["tokenizer"] != now["tokenizer"])
    changes += [
        f"{name} {value} then and {now['config'].get(name)} now in the model's configuration"
        for name, value in then["config"].items()
        if now["config"].get(name) != value
    ]
    if then["precision"] != now["precision"]:
        changes.append(f"{then['precision']} mixed precision then and {now['precision']} now")
    _refuse_or_warn(changes, start.checkpoint, args)

    bins_then, bins_now = _bins_per_step(then), _bins_per_step(now)
    if bins_then != bins_now:
        keeping = f"; --gradient_accumulation_steps {bins_then // now['processes']} would keep them"
        logger.warning(
            "A step now takes %d micro-batches, not %d, as there were %d processes and there are %d: no row is lost or "
            "repeated, but steps differ%s.",
            bins_now, bins_then, then["processes"], now["processes"], keeping * (bins_then % now["processes"] == 0),
        )  # fmt: skip
    bits = [_change(name, *options[name]) for name in options if name in BITS_OPTIONS]
    names = ["processes", "device"] + ["threads"] * (then["device"] == now["device"])
    bits += [f"{name} {then[name]} then and {now[name]} now" for name in names if then[name] != now[name]]
    bits += [
        f"{name} {version} then and {now['versions'].get(name)} now"
        for name, version in then["versions"].items()
        if now["versions"].get(name) != version
    ]
    bits += ["a GPU without --full_determinism"] * (now["device"] != "cpu" and not args.full_determinism)
    if bits:
        logger.warning("The last bits of results may differ from those of one uninterrupted run: %s.", "; ".join(bits))

    ordered_by = {"seed", "per_device_train_batch_size", "shuffle_buffer_size", "packing", "tokens_per_batch"}
    ordered_by |= {"mlm_probability"} if args.packing == "packed" else set()  # a bin has room for so many
    same_order = options.keys().isdisjoint(ordered_by)
    return same_order and then["rows"]["train"] == now["rows"]["train"]


def measures_alike(start: Start, now: dict[str, Any]) -> bool:
    """Whether what a checkpoint's run measured can be compared with what is measured now."""
    if start.checkpoint is None:
        return True
    then = start.state["run"]
    options = differing_options(then["options"], now["options"])
    return (
        then["rows"]["validation"] == now["rows"]["validation"]
        and then["tokenizer"] == now["tokenizer"]
        and options.keys().isdisjoint({"eval_mlm_probability", "temperature"})
    )


def _change(name: str, then: Any, now: Any) -> str:
    said = ("not given" if value is None else value for value in (then, now))
    return "--{} {} then and {} now".format(name, *said)


def _bins_per_step(facts: dict[str, Any]) -> int:
    return facts["processes"] * facts["options"]["gradient_accumulation_steps"]


def _refuse_or_warn(changes: list[str], checkpoint: Path, args: Arguments) -> None:
    if changes and not args.resume_with_changes:
        raise OptionError(
            f"{checkpoint} belongs to another run ({'; '.join(changes)}): go back to what it was, choose another "
            "--output_dir, or give --resume_with_changes to go on all the same."
        )
    if changes:
        logger.warning("This is no longer the run of %s: %s.", checkpoint, "; ".join(changes))


def device_name(accelerator: Accelerator) -> str:
    """The kind of device: "cpu", or what a GPU calls itself."""
    device = accelerator.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def rows_digest(rows: Dataset) -> str:
    """A hash of what encoded rows hold, whatever file or cache they lie in."""
    digest = hashlib.blake2b(digest_size=16)
    for batch in rows.with_format("arrow").iter(batch_size=10_000):
        for name in sorted(batch.column_names):
            digest.update(name.encode())
            _update(digest, batch.column(name).combine_chunks())
    return digest.hexdigest()


def _update(digest: Any, array: Any) -> None:
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        digest.update(np.ascontiguousarray(array.value_lengths().to_numpy(zero_copy_only=False)))
        _update(digest, array.flatten())
    elif pa.types.is_primitive(array.type):
        digest.update(np.ascontiguousarray(array.to_numpy(zero_copy_only=False)))
    else:
        digest.update(repr(array.to_pylist()).encode())
