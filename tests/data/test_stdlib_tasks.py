"""The built-in data of the other tasks: what a row is, and that the splits are apart."""

import ast
import sysconfig
from collections import Counter

import datasets
import pytest

from hf_tfenc.data import stdlib_tasks
from hf_tfenc.data.stdlib_tasks import stdlib_classification, stdlib_pairs, stdlib_tagging


@pytest.fixture(scope="module", autouse=True)
def cache(stdlib_cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", stdlib_cache)
        patch.setattr(stdlib_tasks, "ENOUGH_MODULES", "4")  # fewer, to be quick
        yield


SOURCE = '''
from os import path as where
import sys

class Reader(Base):
    def read(self, file, *, size=1):  # some of it
        text = file.read(size, mode="r").strip()
        return decode(text)[2] + self.name
\x0c
def after(a): return a.b(c=0x1f)
quoted = """a
b""" + f"{a}" + plain
é = umlaut(1, 2)
for key, value in {**table}.items(): pass
'''

TAGGED = [
    "from/keyword os/name import/keyword path/import as/keyword where/name",
    "import/keyword sys/import",
    "class/keyword Reader/class (/operator Base/name )/operator :/operator",
    "def/keyword read/function (/operator self/parameter ,/operator file/parameter ,/operator */operator ,/operator "
    "size/parameter =/operator 1/number )/operator :/operator #_some_of_it/comment",
    "text/target =/operator file/name ./operator read/method (/operator size/name ,/operator mode/argument =/operator "
    '"r"/string )/operator ./operator strip/method (/operator )/operator',
    "return/keyword decode/call (/operator text/name )/operator [/operator 2/number ]/operator +/operator self/name "
    "./operator name/attribute",
    "def/keyword after/function (/operator a/parameter )/operator :/operator return/keyword a/name ./operator b/method "
    "(/operator c/argument =/operator 0x1f/number )/operator",
    "for/keyword key/target ,/operator value/target in/keyword {/operator **/operator table/name }/operator ./operator "
    "items/method (/operator )/operator :/operator pass/keyword",
]


def test_what_each_token_is():
    rows = stdlib_tasks._tagged_lines(SOURCE, ast.parse(SOURCE))
    shown = [
        " ".join(f"{word.replace(' ', '_')}/{tag}" for word, tag in zip(row["words"], row["tags"], strict=True))
        for row in rows
    ]
    assert shown == TAGGED


@pytest.mark.parametrize(
    ("source", "code"),
    [
        (
            'class A:\n    @property\n    def f(self):\n        """Doc.\n\n        More.\n        """\n        return 1\n',
            "def f(self):\n    return 1",
        ),
        (
            '\x0cdef f(a,\n      b):\n    "Doc."\n    # why\n    return a\n',
            "def f(a,\n      b):\n    # why\n    return a",
        ),
        ('def f():\n    """Only this."""\n', ""),
        ('def f(): "Doc."; return 1\n', ""),
        ('def f():\n    "Doc."\n' + "    x = 1\n" * 100, "def f():" + "\n    x = 1" * 39),
    ],
)
def test_code_without_its_docstring(source, code):
    tree = ast.parse(source)
    (function,) = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    assert stdlib_tasks._code(function, source.split("\n")) == code


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return it.  And more.", "Return it."),
        ("Return\n   it (e.g. 3.5)! Now", "Return it (e.g."),
        ("f(x) -> y\n\nMore.", "f(x) -> y"),
        ("", ""),
    ],
)
def test_first_sentence(docstring, sentence):
    assert stdlib_tasks._first_sentence(docstring) == sentence


def test_classification():
    splits = stdlib_classification()
    train, validation = splits["train"], splits["validation"]
    assert train.column_names == ["module", "text", "label"]
    assert all(row["module"].split(".")[0] == row["label"] for row in validation)
    assert not set(train["module"]) & set(validation["module"])
    counts = {split: Counter(rows["label"]) for split, rows in splits.items()}
    assert {"asyncio", "email", "tkinter", "unittest", "xml"} <= set(counts["train"])
    assert set(counts["train"]) == set(counts["validation"])
    for label, count in counts["validation"].items():
        assert 0.05 < count / (count + counts["train"][label]) <= 0.2
    assert not set(train["text"]) & set(validation["text"])
    assert len(train) > 1500


@pytest.mark.parametrize(
    ("built_in", "inputs", "fewest"), [(stdlib_tagging, "words", 5000), (stdlib_pairs, "anchor", 3000)]
)
def test_rows_held_out_by_module(built_in, inputs, fewest):
    splits = built_in()
    families = {split: {stdlib_tasks.family_of(module) for module in rows["module"]} for split, rows in splits.items()}
    assert not families["train"] & families["validation"] and len(families["validation"]) > 10
    keys = [str(row) for rows in splits.values() for row in rows[inputs]]
    assert len(set(keys)) == len(keys)
    assert len(splits["train"]) > fewest
    assert 0.05 < len(splits["validation"]) / len(splits["train"]) < 0.25
    again = built_in()
    assert again["train"].cache_files and again["train"]._fingerprint == splits["train"]._fingerprint


def test_a_name_has_many_tags():
    tags: dict[str, Counter] = {}
    for row in stdlib_tagging()["train"]:
        assert len(row["words"]) == len(row["tags"])
        for word, tag in zip(row["words"], row["tags"], strict=True):
            tags.setdefault(word, Counter())[tag] += 1
    assert set().union(*tags.values()) == {
        "keyword", "function", "class", "parameter", "call", "method", "attribute", "argument", "import", "target",
        "name", "operator", "number", "string", "comment",
    }  # fmt: skip
    assert sum(len(found) >= 4 for found in tags.values()) > 50


def test_pairs_are_short():
    rows = stdlib_pairs()["train"]
    assert all(len(anchor) >= 20 for anchor in rows["anchor"])
    assert all(0 < len(code) <= 400 for code in rows["positive"])
    assert sum(code.startswith(("def ", "async def ")) for code in rows["positive"]) == len(rows)


def test_python_without_its_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    for built_in in (stdlib_tagging, stdlib_pairs):
        with pytest.raises(OSError, match="needs the sources of Python's standard library"):
            built_in()
