"""Compressed files: the kind that their names tell, and their bytes."""

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

OPENERS: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
COMPRESSED = {*OPENERS, ".zst", ".lz4"}  # `datasets` opens these by itself


def uncompressed_name(path: Path) -> Path:
    """The path without the ending of a compression: rows.jsonl for rows.jsonl.gz."""
    return path.with_suffix("") if path.suffix.lower() in COMPRESSED else path


def is_openable(path: Path) -> bool:
    return path.suffix.lower() not in COMPRESSED - set(OPENERS)


def open_bytes(path: Path) -> IO[bytes]:
    """The bytes that are compressed, or the file's own. Raises ValueError for a compression that Python cannot undo."""
    suffix = path.suffix.lower()
    if not is_openable(path):
        raise ValueError(f"{suffix} files of this kind are not read: decompress them, or compress them with gzip")
    return OPENERS[suffix](path) if suffix in OPENERS else path.open("rb")
