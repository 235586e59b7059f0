"""What is checked before long work, each failure in one sentence: the output folder, the disk, the rows."""

import logging
import os
import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset, DatasetDict
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..modeling_tfenc import TfEncModel
from ..presets import preset_config
from .arguments import Arguments, OptionError

# AdamW keeps two for each weight that is trained; Muon keeps one for its matrices, and some room is left then.
OPTIMIZER_NUMBERS = 2
UNKNOWN_ROWS, UNKNOWN_SHARE = 10_000, 0.005  # looked at, and from which on it is said: one may be a whole line of text

logger = logging.getLogger(__name__)


def check_processes(accelerator: Accelerator) -> None:
    """Raise OptionError unless all processes that were launched have found each other."""
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != accelerator.num_processes:
        raise OptionError(
            f"{launched} processes were launched, and this one knows of {accelerator.num_processes}: "
            "launch them with torchrun, or with accelerate launch as in recipes/accelerate/."
        )


def check_attention(args: Arguments) -> None:
    """Raises OptionError where this machine has no such attention as the options name."""
    if args.attn_implementation:
        try:
            with torch.device("meta"):
                TfEncModel._from_config(preset_config("bert-tiny"), attn_implementation=args.attn_implementation)
        except (ImportError, ValueError) as error:
            reason = str(error).strip().split("\n")[0].rstrip(".")
            raise OptionError(
                f"--attn_implementation {args.attn_implementation} is not to be had here ({reason}): choose another, or "
                "leave it out."
            ) from error


def check_folder(folder: Path, accelerator: Accelerator) -> None:
    """See that all processes can write to one and the same output folder. It is left as it was, or not there.

    Raises:
        OptionError: it cannot be written, or processes on other machines do not see it.
    """
    name = [f".shared-{uuid.uuid4().hex}"]
    broadcast_object_list(name)
    token, problem = folder / name[0], None
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            token.touch()
    except OSError as error:
        problem = f"--output_dir {folder} cannot be written ({error.strerror}): choose another folder."
    problems = gather_object([problem])
    seen = gather_object([token.exists()])
    if accelerator.is_main_process:
        with suppress(OSError):
            token.unlink(missing_ok=True)
            for path in missing:
                path.rmdir()
    if failures := [text for text in problems if text]:
        raise OptionError(failures[0])
    if not all(seen):
        raise OptionError(
            f"--output_dir {folder} is not one folder for all {accelerator.num_processes} processes: "
            "choose one on a file system that all machines share."
        )


def check_space(folder: Path, model: nn.Module, checkpoints: int, freed: bool) -> None:
    """See that so many more checkpoints and the best model fit on the disk.

    Args:
        freed: whether what the folder holds is removed first.

    Raises:
        OptionError: they do not.
    """
    sizes = {parameter: parameter.numel() * parameter.element_size() for parameter in model.parameters()}
    weights, trained = sum(sizes.values()), sum(size for parameter, size in sizes.items() if parameter.requires_grad)
    needed = (checkpoints + 1) * weights + checkpoints * OPTIMIZER_NUMBERS * trained
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if freed else 0
    free = shutil.disk_usage(there).free + held
    if free < needed:
        raise OptionError(
            f"--output_dir {folder} has room for {free / 1e6:,.1f} MB, and checkpoints with the best model need "
            f"{needed / 1e6:,.1f} MB: free some, or choose another folder."
        )


def check_rows(
    rows: DatasetDict,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    columns: Sequence[str] = ("input_ids",),
) -> None:
    """See that the model can take the rows, whose token ids are in `columns`.

    Raises:
        OptionError: a split is empty, an id is none of the model's vocabulary, a row is longer than its positions, or
            tokenizer and model disagree on what is padding.
    """
    config = model.config
    for split, encoded in rows.items():
        if not len(encoded):
            raise OptionError(f"The {split} split has no row left to learn from: give it more text.")
        largest, longest = (max(found) for found in zip(*(_extremes(encoded, name) for name in columns), strict=True))
        if largest >= config.vocab_size:
            raise OptionError(
                f"The {split} split has the token {largest}, and the model's vocab_size is {config.vocab_size}: "
                "use the model's own tokenizer."
            )
        if config.position_limit is not None and longest > config.position_limit:
            raise OptionError(
                f"The {split} split has a row of {longest} tokens, and the model has {config.position_limit} positions: "
                "lower --max_seq_length."
            )
    if tokenizer.pad_token_id is None:
        raise OptionError("The tokenizer has no pad token, which batches need: choose another --tokenizer_name.")
    if config.pad_token_id is not None and config.pad_token_id != tokenizer.pad_token_id:
        raise OptionError(
            f"The tokenizer's pad token has the id {tokenizer.pad_token_id}, and the model's pad_token_id is "
            f"{config.pad_token_id}: use the model's own tokenizer."
        )


def warn_of_bare_texts(tokenizer: PreTrainedTokenizerBase) -> None:
    """Warn where a tokenizer names tokens for the start and the end of a text, and does not put them there."""
    ids = tokenizer("a", "b")["input_ids"]
    missing = [getattr(tokenizer, name) for name in ("cls_token", "sep_token") if getattr(tokenizer, name) is not None]
    if missing and not set(tokenizer.convert_tokens_to_ids(missing)) <= set(ids):
        logger.warning(
            "The tokenizer has %s and does not put them around a text, so that the two texts of a pair run into each "
            "other, and pooling by cls takes a text's own first token: give it a post-processor (TemplateProcessing).",
            " and ".join(missing),
        )


def warn_of_unknown(rows: DatasetDict, tokenizer: PreTrainedTokenizerBase, columns: Sequence[str]) -> None:
    """Warn where more than a few of the first tokens of a split are unknown to the tokenizer."""
    unknown_id = tokenizer.unk_token_id
    for split, encoded in rows.items() if unknown_id is not None else ():
        batch = encoded.with_format("arrow")[:UNKNOWN_ROWS]
        ids = np.concatenate([pc.list_flatten(batch.column(name)).to_numpy() for name in columns])
        share = (ids == unknown_id).mean()
        if share > UNKNOWN_SHARE:
            logger.warning(
                "%.1f %% of the tokens of the %s split are %s, unknown to the tokenizer, and nothing can be learned of "
                "what they stand for: another one fits better, such as --tokenizer_type byte-level-bpe, which knows all "
                "text.", 100 * share, split, tokenizer.unk_token,
            )  # fmt: skip


def _extremes(rows: Dataset, column: str) -> tuple[int, int]:
    """The largest token id in a column of encoded rows, and the tokens of the longest row."""
    largest = longest = 0
    for batch in rows.with_format("arrow").iter(batch_size=10_000):
        ids = batch.column(column)
        largest = max(largest, pc.max(pc.list_flatten(ids)).as_py() or 0)
        longest = max(longest, pc.max(pc.list_value_length(ids)).as_py() or 0)
    return largest, longest
