"""What `hf-tfenc embed` does: a vector for each row of a file, over sentence-transformers, part after part.

A part is some thousand rows, written down before the next one begins. A call that was stopped takes up the parts that it
finds: each of them says which texts, model and options it is of.
"""

import contextlib
import hashlib
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from tqdm import tqdm
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from .data.columns import TEXT_COLUMNS, Column, choose, log_guesses, undecodable
from .data.files import Files, SampleBy, find_files
from .data.values import shown
from .extras import require
from .memory import memory_for
from .modeling_tfenc import TfEncModel
from .pretrained import load_whole, saved_errors
from .publish.sentence_transformers import pools_there
from .tokenization import HUB_ID
from .training.lock import FolderLock

logger = logging.getLogger(__name__)

ROWS_PER_PART = 10_000  # sorted by length, and saved, together
BATCH_SIZE_ON_CPU, BATCH_SIZE = 64, 256  # the former measured, on two cores
KEY = b"hf_tfenc"  # under which a part says what it is of


class Encoding(NamedTuple):
    """How texts become vectors.

    batch_size: texts at once; if not given, as many as keep the device busy.
    max_seq_length: tokens of a text that are read; the model's own limit if not given.
    torch_compile: compile the layers, for texts of any length; on a GPU alone.
    """

    batch_size: int | None = None
    max_seq_length: int | None = None
    normalize: bool = False
    bf16: bool = False
    torch_compile: bool = False


def embed(
    file: str,
    out: Path,
    model_name_or_path: str,
    text_column: str | None = None,
    sample_by: SampleBy = "line",
    encoding: Encoding = Encoding(),  # noqa: B008  # it cannot change
    overwrite: bool = False,
) -> str:
    """Write a parquet file with a row for each of `file`, in their order: `row`, from 1, and `embedding`, float32.

    Args:
        file: any file that train.py reads; a pattern or a folder, too.
        model_name_or_path: folder or Hub id of what sentence-transformers loads.
        sample_by: what a row of a plain text file is.
        overwrite: replace `out`, if there is one.

    Returns:
        what was done, in a sentence

    Raises:
        ValueError, OSError: one sentence; what was computed so far stays.
    """
    require("sentence_transformers", "sentence-transformers")
    if out.suffix != ".parquet" or out.is_dir():
        raise ValueError(f"{out} is no file that ends in .parquet, which is what is written: name it so.")
    if out.exists() and not overwrite:
        raise OSError(f"{out} is there already: choose another name, or replace it with --overwrite.")
    rows, column = read_rows(file, out, text_column, sample_by)
    check_texts(rows, column)
    model = load_model(model_name_or_path, encoding)
    digest = digest_of(model, encoding)
    parts = out.with_name(f".{out.name}.parts")  # hidden, so that no folder of texts has them for its own
    parts.mkdir(parents=True, exist_ok=True)
    full = count_full(model)
    taken, files = 0, []
    with FolderLock(parts, "OUT") as lock:
        lock.take()
        with tqdm(total=len(rows), unit=" rows", desc="Embedding", smoothing=0) as bar:
            for first in range(0, len(rows), ROWS_PER_PART):
                texts = rows[first : first + ROWS_PER_PART][column]
                files.append(parts / f"{first:012}.parquet")
                key = key_of(digest, texts)
                if is_part(files[-1], key):
                    taken += len(texts)
                    bar.initial += len(texts)
                else:
                    write_part(files[-1], key, first, vectors(model, texts, encoding))
                bar.update(len(texts))
        join(files, out)
        for part in parts.glob("*.parquet"):  # those of rows that the file has no more, too
            part.unlink()
    with contextlib.suppress(OSError):  # something else lies in it
        parts.rmdir()
    if cut := int(sum(full)):
        logger.warning(
            "%s texts fill the %d tokens that are read of a text; what is longer is cut off. --max_seq_length says another limit.",
            f"{cut:,}", model.max_seq_length,
        )  # fmt: skip
    again = f", {taken:,} of them from an earlier call" if taken else ""
    return f"{out} holds {len(rows):,} vectors of {model.get_embedding_dimension()} numbers{again}."


# --- Texts -----------------------------------------------------------------------------------------------------------


def read_rows(file: str, out: Path, text_column: str | None, sample_by: SampleBy) -> tuple[Dataset, str]:
    """All rows of a file, and which column holds the text."""
    paths = [path for group in find_files("FILE", file).values() for path in group]
    if out.resolve() in (path.resolve() for path in paths):
        raise ValueError(f"{out} is among the files to be read, and would be replaced: choose another name for OUT.")
    origin = Files.of("FILE", paths, sample_by).filled()
    if sample_by != "line" and not origin.plain_text:
        raise ValueError(f"--sample_by {sample_by} is for plain text, and {origin.where} is none: leave it out.")
    wanted = [Column("text", "text", TEXT_COLUMNS, text_column, "--text_column")]
    chosen = choose(origin.where, origin.types(), wanted)
    log_guesses(origin.where, wanted, chosen)
    rows = origin.load([chosen["text"]])
    if not len(rows):
        raise ValueError(f"FILE {file} has no rows: give one that has some.")
    return rows, chosen["text"]


def check_texts(rows: Dataset, column: str) -> None:
    """Raises ValueError where a row has no text, by its number; an empty text is one."""
    for row, bad in undecodable(rows.select_columns(column)).items():
        raise ValueError(f"Row {row + 1}: {bad.reason}: mend the row, or leave it out of the file.")
    for first in range(0, len(rows), ROWS_PER_PART):
        for number, text in enumerate(rows[first : first + ROWS_PER_PART][column], first + 1):
            if not isinstance(text, str):
                raise ValueError(
                    f"Row {number}: {column} is {shown(text)}, not a string: mend the row, or leave it out of the file."
                )


# --- Vectors ---------------------------------------------------------------------------------------------------------


def load_model(name_or_path: str, encoding: Encoding) -> Any:
    """The model as sentence-transformers has it; one of ours does no work on padding."""
    from sentence_transformers import SentenceTransformer

    if not Path(name_or_path).is_dir() and not HUB_ID.fullmatch(name_or_path):
        raise OSError(f"--model_name_or_path {name_or_path}: there is no such folder, check the path.")
    dtype = torch.bfloat16 if encoding.bf16 else torch.float32
    with saved_errors(name_or_path):
        model = SentenceTransformer(name_or_path, model_kwargs={"dtype": dtype})
    for ours in (module for module in transformers_in(model) if isinstance(module, TfEncModel)):
        if ours.config.architectures == ["TfEncModel"] and not pools_there(ours.config):
            raise ValueError(
                f"sentence-transformers has no pooler_activation {ours.config.pooler_activation!r}, as the model in "
                f"{name_or_path} has: take its pooler_output by AutoModel."
            )
        load_whole(AutoModel, name_or_path, add_pooling_layer=False)  # else what is missing would be random numbers
        model.tokenizer.split_special_tokens = True  # as in training: a "[SEP]" in a text is text
    if encoding.max_seq_length is not None:
        check_max_seq_length(encoding.max_seq_length, model)
        model.max_seq_length = encoding.max_seq_length
    if encoding.torch_compile:
        if model.device.type == "cpu":
            raise ValueError("--torch_compile is for a GPU, and the model is on a CPU: leave it out.")
        # A graph for each of 3 kinds of layers, times 5 of batches: padded or not, of one text or more, of one token.
        torch.compiler.config.recompile_limit = 32
        for module in model.modules():
            if isinstance(module, GradientCheckpointingLayer):  # as transformers marks a layer, of ours or another's
                module.compile(dynamic=True)
    return model


def check_max_seq_length(asked: int, model: Any) -> None:
    """Raise ValueError where so few tokens hold no text, or where the model has no positions for so many."""
    special = (
        model.tokenizer.num_special_tokens_to_add() if hasattr(model.tokenizer, "num_special_tokens_to_add") else 0
    )
    if asked <= special:
        raise ValueError(f"--max_seq_length {asked} has no room for text beside {special} special tokens: raise it.")
    for module in transformers_in(model):
        limit = module.config.position_limit if isinstance(module, TfEncModel) else None
        if module.config.model_type == "bert":
            limit = module.config.max_position_embeddings
        if limit is not None and asked > limit:
            raise ValueError(f"--max_seq_length {asked} is more than the model's {limit} positions: lower it.")


def count_full(model: Any) -> list[torch.Tensor]:
    """A list that grows, batch by batch, by how many texts had as many tokens as are read of one."""
    counts: list[torch.Tensor] = []

    def count(_: Any, inputs: tuple) -> None:
        mask = inputs[0].get("attention_mask")
        if mask is not None and model.max_seq_length:
            counts.append((mask.sum(dim=1) >= model.max_seq_length).sum())

    model[0].register_forward_pre_hook(count)
    return counts


def transformers_in(model: torch.nn.Module) -> list[PreTrainedModel]:
    return [module for module in model.modules() if isinstance(module, PreTrainedModel)]


def digest_of(model: Any, encoding: Encoding) -> bytes:
    """A hash of all that vectors depend on but the texts; how many are computed at once changes their last bits alone."""
    settled = encoding._replace(batch_size=None, max_seq_length=model.max_seq_length)
    tokenizer = model.tokenizer
    sides = [getattr(tokenizer, name, None) for name in ("truncation_side", "padding_side", "split_special_tokens")]
    options = (settled, str(model), model.prompts, model.default_prompt_name, model.truncate_dim, sides)
    digest = hashlib.blake2b(repr(options).encode())
    for module in transformers_in(model):
        digest.update(module.config.to_json_string(use_diff=False).encode())
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)  # some models have a bare one
    digest.update(backend.to_str().encode() if hasattr(backend, "to_str") else repr(tokenizer).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def key_of(digest: bytes, texts: list[str]) -> bytes:
    """What a part is of: a model and options, by their hash, and texts."""
    key = hashlib.blake2b(digest)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        key.update(len(data).to_bytes(8, "little") + data)
    return key.hexdigest().encode()


def vectors(model: Any, texts: list[str], encoding: Encoding) -> np.ndarray:
    """(texts, features) float32, in the order of the texts; they are computed from the longest to the shortest."""
    size = encoding.batch_size or (BATCH_SIZE_ON_CPU if model.device.type == "cpu" else BATCH_SIZE)
    with memory_for(f"--batch_size {size}", "halve it"):
        result = np.asarray(model.encode(texts, batch_size=size, show_progress_bar=False), dtype=np.float32)
    if encoding.normalize:  # here, for in bfloat16 the length would be 1 to three digits
        result = result / np.linalg.norm(result, axis=1, keepdims=True).clip(min=1e-12)
    return result


# --- Parts -----------------------------------------------------------------------------------------------------------


def is_part(path: Path, key: bytes) -> bool:
    """Whether a whole part of just these texts is there."""
    with contextlib.suppress(OSError, pa.ArrowInvalid):
        return (pq.read_schema(path).metadata or {}).get(KEY) == key
    return False


def write_part(path: Path, key: bytes, first: int, embeddings: np.ndarray) -> None:
    """Write a part so that it is there whole or not at all."""
    width = embeddings.shape[1]
    flat = pa.array(embeddings.reshape(-1))
    table = pa.table(
        {
            "row": pa.array(np.arange(first + 1, first + 1 + len(embeddings))),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, width),
        }
    ).replace_schema_metadata({KEY: key})
    beside = path.with_suffix(".tmp")
    pq.write_table(table, beside)
    os.replace(beside, path)


def join(files: list[Path], out: Path) -> None:
    """All parts as one file, a row group each."""
    beside = out.with_name(f".{out.name}.tmp")
    try:
        with pq.ParquetWriter(beside, pq.read_schema(files[0]).remove_metadata()) as writer:
            for file in files:
                writer.write_table(pq.read_table(file).replace_schema_metadata())
        os.replace(beside, out)
    finally:
        beside.unlink(missing_ok=True)
