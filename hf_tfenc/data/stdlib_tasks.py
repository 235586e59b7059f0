"""Built-in data for the other tasks, from the sources of Python's own standard library, on every machine.

Each set has the splits `train` and `validation`, held out by module; a little differs from one Python version to the
next. Built on first use (seconds), then read from disk. OSError where this Python comes without its sources.
"""

import ast
import hashlib
import io
import keyword
import re
import textwrap
import tokenize
from collections.abc import Callable, Iterator
from typing import Any

from datasets import DatasetDict

from .stdlib_corpus import (
    built_folder,
    family_of,
    is_drawn,
    modules,
    no_sources,
    standard_library,
    stdlib_docstrings,
)

# Part of the cache's key: raise it whenever a change below changes the rows.
TASKS_VERSION = 1

Rows = dict[str, list[dict[str, Any]]]  # by split


# --- Classification: which package a docstring is from ---------------------------------------------------------------

SMALLEST_PACKAGE = 100  # docstrings
FEWEST_MODULES = 5  # of a package, since whole modules are held out
HELD_OUT_DOCSTRINGS = 0.2  # at most, of each package


def stdlib_classification() -> DatasetDict:
    """Docstrings and the top-level package that each is from (asyncio, email, tkinter ...).

    Columns: `module` (dotted), `text`, `label` (a name). Of each package some modules are held out.
    """
    return _built("classification", lambda: _classification(stdlib_docstrings()))


def _classification(docstrings: DatasetDict) -> Rows:
    packages: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for split in docstrings.values():
        for row in split:
            package, _, rest = row["module"].partition(".")
            if row["kind"] != "topic":
                kept = {"module": row["module"], "text": row["text"], "label": package}
                packages.setdefault(package, {}).setdefault(rest, []).append(kept)

    rows: Rows = {"train": [], "validation": []}
    for by_module in packages.values():
        total = sum(map(len, by_module.values()))
        if total < SMALLEST_PACKAGE or len(by_module) < FEWEST_MODULES:
            continue
        room = HELD_OUT_DOCSTRINGS * total
        for module in sorted(by_module, key=_hash):
            held_out = len(by_module[module]) <= room
            room -= len(by_module[module]) * held_out
            rows["validation" if held_out else "train"] += by_module[module]
    return rows


# --- Tagging: what each token of a line of source code is ------------------------------------------------------------

ENOUGH_MODULES = "6"  # those whose hash, in hexadecimal, is below: three in eight
LINES_OF_A_MODULE = 100  # at most, so that a few long modules do not make up the whole
SHORTEST_LINE, LONGEST_LINE = 4, 40  # tokens
LONGEST_TOKEN = 40  # characters

# By the token's kind alone, where the syntax tree has nothing to say.
TOKEN_TAGS = {
    tokenize.OP: "operator",
    tokenize.NUMBER: "number",
    tokenize.STRING: "string",
    tokenize.COMMENT: "comment",
    tokenize.NAME: "name",
}
LAYOUT = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER, tokenize.ENCODING}


def stdlib_tagging() -> DatasetDict:
    """Lines of source code by the token, and what each token is.

    Columns: `module`, `words` (the tokens), `tags`: keyword, function and class (where one is defined), parameter,
    call and method (where one is called), attribute, argument (a call's keyword), import, target (of an assignment),
    name (any other), operator, number, string, comment. The same name has many tags; its line tells which.
    Modules are held out by their family, the ones that the corpus of text holds out among them; each line occurs once.
    """
    return _built("tagging", _tagging)


def _tagging() -> Rows:
    rows: Rows = {"validation": [], "train": []}  # in this order, so that a line on both sides is held out
    for module, source, tree in _sources(lambda module: _hash(module) < ENOUGH_MODULES):
        lines = [row for row in _tagged_lines(source, tree) if _is_worth(row)]
        for row in sorted(lines, key=lambda row: _hash(" ".join(row["words"])))[:LINES_OF_A_MODULE]:
            rows[_split_of(module)].append({"module": module, **row})
    return _first_of_each(rows, lambda row: " ".join(row["words"]))


def _is_worth(row: dict[str, list[str]]) -> bool:
    words = row["words"]
    return SHORTEST_LINE <= len(words) <= LONGEST_LINE and max(map(len, words)) <= LONGEST_TOKEN


def _tagged_lines(source: str, tree: ast.Module) -> Iterator[dict[str, list[str]]]:
    """Tokens and tags of each line, without lines that a string or a token of an f-string goes through."""
    roles = _roles(tree)
    text = source.split("\n")  # str.splitlines would also split at the form feeds that some modules hold
    lines: dict[int, list[tuple[str, str]]] = {}
    broken: set[int] = set()
    before = ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in LAYOUT:
            continue
        line, column = token.start
        # Since Python 3.12 f-strings are tokens of their own kinds, and before they were strings: neither is taken.
        whole = token.type in TOKEN_TAGS and not re.match(r"[a-z]*[ft][a-z]*['\"]", token.string, re.IGNORECASE)
        if not whole or token.end[0] > line or not text[line - 1].isascii():  # the tree counts bytes, we characters
            broken.update(range(line, token.end[0] + 1))
        elif token.type == tokenize.NAME and keyword.iskeyword(token.string):
            lines.setdefault(line, []).append((token.string, "keyword"))
        else:
            defined = {"def": "function", "class": "class"}.get(before)
            tag = defined or roles.get((line, column)) or TOKEN_TAGS[token.type]
            lines.setdefault(line, []).append((token.string, tag))
        before = token.string
    for line, tokens in lines.items():
        if line not in broken:
            yield {"words": [word for word, _ in tokens], "tags": [tag for _, tag in tokens]}


def _roles(tree: ast.Module) -> dict[tuple[int, int], str]:
    """What the names at (line, column) are, where it is more than a name."""
    roles: dict[tuple[int, int], str] = {}

    def at_end(node: ast.Attribute) -> tuple[int, int]:
        return node.end_lineno or 0, (node.end_col_offset or 0) - len(node.attr)

    for node in ast.walk(tree):  # from the outside in, so that a call is seen before what it calls
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                roles[node.func.lineno, node.func.col_offset] = "call"
            elif isinstance(node.func, ast.Attribute):
                roles[at_end(node.func)] = "method"
        elif isinstance(node, ast.Attribute):
            roles.setdefault(at_end(node), "attribute")
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            roles[node.lineno, node.col_offset] = "target"
        elif isinstance(node, ast.arg):
            roles[node.lineno, node.col_offset] = "parameter"
        elif isinstance(node, ast.keyword) and node.arg:
            roles[node.lineno, node.col_offset] = "argument"
        elif isinstance(node, ast.alias):
            roles[node.lineno, node.col_offset] = "import"
    return roles


# --- Pairs: a docstring's first sentence and its function ------------------------------------------------------------

SHORTEST_SENTENCE = 20  # characters
LONGEST_CODE = 400  # characters of a function, cut after a line


def stdlib_pairs() -> DatasetDict:
    """What a function does, in a sentence, and its source code.

    Columns: `module`, `anchor` (the first sentence of the docstring), `positive` (the function's first lines, without
    the docstring). Held out as in `stdlib_tagging`; each sentence and each piece of code occurs once.
    """
    return _built("pairs", _pairs)


def _pairs() -> Rows:
    rows: Rows = {"validation": [], "train": []}
    for module, source, tree in _sources():
        lines = source.split("\n")  # str.splitlines would also split at the form feeds that some modules hold
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                anchor, positive = _first_sentence(ast.get_docstring(node) or ""), _code(node, lines)
                if len(anchor) >= SHORTEST_SENTENCE and positive:
                    rows[_split_of(module)].append({"module": module, "anchor": anchor, "positive": positive})
    return _first_of_each(_first_of_each(rows, lambda row: row["anchor"]), lambda row: row["positive"])


def _first_sentence(docstring: str) -> str:
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s", paragraph, maxsplit=1)[0]


def _code(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str:
    """The function's lines from `def` on, without its docstring, as many as `LONGEST_CODE` allows; "" if none."""
    docstring = node.body[0]
    if len(node.body) < 2 or docstring.lineno == node.lineno:
        return ""
    kept = lines[node.lineno - 1 : docstring.lineno - 1] + lines[docstring.end_lineno : node.end_lineno]
    code = textwrap.dedent("\n".join(kept)).strip()
    if len(code) > LONGEST_CODE:
        code = code[: max(code.rfind("\n", 0, LONGEST_CODE + 1), 0)]  # nothing, where the first line is too long
    return code


# --- What they share -------------------------------------------------------------------------------------------------


def _built(name: str, rows: Callable[[], Rows]) -> DatasetDict:
    folder = built_folder(f"{name}-v{TASKS_VERSION}", lambda: {name: rows()})
    return DatasetDict.load_from_disk(folder / name)


def _sources(wanted: Callable[[str], bool] = lambda module: True) -> Iterator[tuple[str, str, ast.Module]]:
    """(dotted name, text, tree) of the library's modules, without the few that are in another encoding than UTF-8."""
    library = standard_library()
    none = True
    for module, source, tree in modules(library, wanted):
        try:
            text = source.decode("utf-8-sig")
        except UnicodeDecodeError:
            continue
        none = False
        yield module, text, tree
    if none:
        raise no_sources(library)


def _split_of(module: str) -> str:
    return "validation" if is_drawn(family_of(module)) else "train"


def _first_of_each(rows: Rows, key: Callable[[dict[str, Any]], str]) -> Rows:
    """Of rows with one key the first; those of `validation` go first, so that no training row stands there too."""
    seen: set[str] = set()
    kept: Rows = {}
    for split in ("validation", "train"):
        kept[split] = []
        for row in rows[split]:
            if key(row) not in seen:
                kept[split].append(row)
            seen.add(key(row))
    return {"train": kept["train"], "validation": kept["validation"]}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
