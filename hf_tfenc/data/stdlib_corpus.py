"""The built-in corpus: Python's own documentation, read from the running interpreter.

Real English on every machine, with nothing to download: the docstrings of the standard library, found in its sources
without importing them, and the language reference's topics in `pydoc_data`. About 2.2 million characters; a little
different from one Python version to the next, so `corpus_info` says which text it was.
"""

import ast
import hashlib
import inspect
import platform
import re
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict

# Part of the cache's key: raise it whenever a change below changes the text or its split.
CORPUS_VERSION = 1

# Test suites, the modules with which Python tests its own imports, and ensurepip's wheels of other projects.
SKIPPED = {"test", "tests", "idle_test", "__hello__", "__phello__", "_bundled"}

# What is held out is chosen by a hash of the module family's name, so a family is on the same side under every Python
# version and no text is seen in training that sits beside a held-out one. Families above the size limit (tkinter,
# email, asyncio ...) always train: one of them would be half of the held-out text. Hashing 17 in 100 of the others
# holds out 8 % of all characters; of the salts tried, this one keeps to that (8.0 to 8.3 %) on Python 3.10 to 3.13.
HELD_OUT_PERCENT = 17
HELD_OUT_SALT = "332"
LARGEST_HELD_OUT_FAMILY = 40_000  # characters

Row = dict[str, str]


def stdlib_docstrings() -> DatasetDict:
    """The corpus by the docstring: splits `train` and `validation`, each text once.

    Columns: `module` (dotted), `name` (qualified within the module, empty for the module's own docstring; a topic's
    name), `kind` (module, class, function or topic), `text`. Built on first use (seconds), then read from disk.
    Raises OSError where this Python comes without its sources.
    """
    return DatasetDict.load_from_disk(_built_corpus() / "docstrings")


def stdlib_documents() -> DatasetDict:
    """The same text by the document: one row a module (its docstrings in source order, a blank line between them).

    Each topic is a document of its own. Columns: `module`, `text`.
    """
    return DatasetDict.load_from_disk(_built_corpus() / "documents")


def corpus_info(corpus: DatasetDict) -> dict[str, object]:
    """What a run should record: Python's version, and rows, characters and sha256 of the text of each split."""
    info: dict[str, object] = {"python_version": platform.python_version(), "corpus_version": CORPUS_VERSION}
    for split, rows in corpus.items():
        texts = rows["text"][:]
        digest = hashlib.sha256("\0".join(texts).encode())
        info[split] = {"rows": len(texts), "characters": sum(map(len, texts)), "sha256": digest.hexdigest()}
    return info


def _built_corpus() -> Path:
    """Folder of this interpreter's corpus, built if it is not there yet."""

    def build() -> dict[str, dict[str, list[Row]]]:
        splits = _split([*_docstrings(standard_library()), *_topics()])
        return {"docstrings": splits, "documents": {split: _documents(rows) for split, rows in splits.items()}}

    return built_folder(f"v{CORPUS_VERSION}", build)


def standard_library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def built_folder(version: str, build: Callable[[], Mapping[str, Mapping[str, list[dict[str, Any]]]]]) -> Path:
    """A folder of data sets made from this interpreter's sources: rows by split by name, made on first use."""
    # Two installations of one version may be patched differently, hence the path in the key.
    key = "-".join(
        (
            sys.implementation.name,
            platform.python_version(),
            sys.platform,
            hashlib.sha256(str(standard_library()).encode()).hexdigest()[:8],
            version,
        )
    )
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "hf_tfenc_stdlib" / key
    if folder.exists():
        return folder

    parts = build()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{key}.", ignore_cleanup_errors=True) as beside:
        for name, splits in parts.items():
            _save(splits, Path(beside) / "corpus" / name)
        try:
            (Path(beside) / "corpus").rename(folder)
        except OSError:
            if not folder.exists():  # if it does, another process was first, with the same text
                raise
    return folder


def _save(splits: Mapping[str, list[dict[str, Any]]], folder: Path) -> None:
    corpus = DatasetDict({split: Dataset.from_list(rows) for split, rows in splits.items()})
    # The progress bars of so small a write would be the first thing a user sees.
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        corpus.save_to_disk(folder)
    finally:
        if shown:
            datasets.enable_progress_bars()


def modules(
    library: Path, wanted: Callable[[str], bool] = lambda module: True
) -> Iterator[tuple[str, bytes, ast.Module]]:
    """(dotted name, source, its tree) of the modules under `library` whose names are wanted, by path."""
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        # Folders whose name no import could spell (site-packages, config-3.11-...) are no part of the library.
        if SKIPPED & set(parts) or not all(part.isidentifier() for part in parts):
            continue
        module = ".".join(parts).removesuffix(".__init__")
        if not wanted(module):
            continue
        source = path.read_bytes()
        try:
            with warnings.catch_warnings(action="ignore"):  # some sources hold escapes deprecated by now
                tree = ast.parse(source)
        except (SyntaxError, ValueError):  # templates and samples of other Python versions
            continue
        yield module, source, tree


def _docstrings(library: Path) -> list[Row]:
    """Every docstring under `library`, modules in sorted order, each module's docstrings in source order."""
    rows: list[Row] = []
    for module, _, tree in modules(library):
        for name, kind, text in _walk(tree):
            if text := inspect.cleandoc(text).strip():
                rows.append({"module": module, "name": name, "kind": kind, "text": text})
    if not rows:
        raise no_sources(library)
    return sorted(rows, key=lambda row: row["module"])  # stable, so source order remains within a module


def no_sources(library: Path) -> OSError:
    return OSError(
        f"The built-in corpus needs the sources of Python's standard library, and {library} holds none: "
        "use a Python that has them, or give your own text with --train_file."
    )


def _walk(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(qualified name, kind, raw docstring) of `node` and of what is defined in it, in source order."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        kind = "module" if isinstance(node, ast.Module) else "class" if isinstance(node, ast.ClassDef) else "function"
        yield prefix, kind, ast.get_docstring(node, clean=False) or ""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _walk(child, f"{prefix}.{child.name}".lstrip("."))
        elif isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):  # expressions define nothing
            yield from _walk(child, prefix)


def _topics() -> list[Row]:
    """The language reference, as `help()` shows it: one row a topic."""
    try:
        topics: dict[str, str] = import_module("pydoc_data.topics").topics
    except ModuleNotFoundError as error:
        raise OSError(
            "The built-in corpus needs the module pydoc_data, which this Python was stripped of: "
            "use a Python that has it, or give your own text with --train_file."
        ) from error
    return [
        {"module": "pydoc_data.topics", "name": name, "kind": "topic", "text": text.strip()}
        for name, text in sorted(topics.items())
        if text.strip()
    ]


def _split(rows: list[Row]) -> dict[str, list[Row]]:
    """`rows` in `train` and `validation`, in their order; of equal texts the first of `train` is kept."""
    characters: dict[str, int] = {}
    for row in rows:
        family = family_of(row["module"])
        characters[family] = characters.get(family, 0) + len(row["text"])

    def held_out(row: Row) -> bool:
        family = family_of(row["module"])
        # Topics repeat one another's sections, so that a held-out topic would have been seen in training.
        if row["kind"] == "topic" or characters[family] > LARGEST_HELD_OUT_FAMILY:
            return False
        return is_drawn(family)

    seen: set[str] = set()

    def first_of_its_text(row: Row) -> bool:
        new = row["text"] not in seen
        seen.add(row["text"])
        return new

    # Training text goes first, so that a text on both sides counts as seen.
    train = [row for row in rows if not held_out(row) and first_of_its_text(row)]
    validation = [row for row in rows if held_out(row) and first_of_its_text(row)]
    return {"train": train, "validation": validation}


def family_of(module: str) -> str:
    """Modules that document the same things: `_pydecimal` and `decimal`, `sre_parse` and `sre_compile`."""
    return re.sub(r"^_+(py)?_*", "", module.split(".")[0]).split("_")[0]


def is_drawn(family: str) -> bool:
    """Whether a family of modules is among those to hold out, by a hash of its name."""
    return int(hashlib.sha256(f"{HELD_OUT_SALT}{family}".encode()).hexdigest(), 16) % 100 < HELD_OUT_PERCENT


def _documents(rows: list[Row]) -> list[Row]:
    """One row a module or topic, from rows in which each one's texts follow one another."""
    texts: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        topic = row["name"] if row["kind"] == "topic" else ""
        texts.setdefault((row["module"], topic), []).append(row["text"])
    return [{"module": module, "text": "\n\n".join(parts)} for (module, _), parts in texts.items()]
