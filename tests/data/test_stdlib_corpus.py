"""The built-in corpus: what is in it, how it is split, and its cache."""

import hashlib
import platform
import re
import sysconfig
import threading
import time

import datasets
import pytest

from hf_tfenc.data import stdlib_corpus
from hf_tfenc.data.stdlib_corpus import corpus_info, stdlib_docstrings, stdlib_documents

LIBRARY = {
    "alpha.py": '''
"""  Alpha's own.

    Indented.  """
class Outer:
    """An outer class."""
    if True:
        async def method(self):
            """A method."""
            def inner():
                """An inner function."""
    class Empty:
        "   "
def silent(): pass
try:
    pass
except Exception:
    def fallback():
        """A fallback."""
''',
    "_pyalpha.py": 'def twin():\n    """A method."""\n',
    "pkg/__init__.py": '"""A package."""\n',
    "pkg/part.py": '"""A part of it."""\n',
    "broken.py": "def (:\n",
    "test/hidden.py": '"""Hidden."""\n',
    "pkg/tests/hidden.py": '"""Hidden."""\n',
    "site-packages/hidden.py": '"""Hidden."""\n',
}


@pytest.fixture(scope="module", autouse=True)
def cache(stdlib_cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", stdlib_cache)
        yield


@pytest.fixture(scope="module")
def docstrings(cache):
    return stdlib_docstrings()


@pytest.fixture
def small_library(tmp_path, monkeypatch):
    """A library of a few modules in place of Python's own, with a cache of its own."""
    for name, source in LIBRARY.items():
        path = tmp_path / "library" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "library"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def test_rows_are_docstrings_in_source_order(small_library):
    rows = stdlib_corpus._docstrings(small_library / "library")
    found = [(row["module"], row["name"], row["kind"], row["text"]) for row in rows]
    assert found == [
        ("_pyalpha", "twin", "function", "A method."),
        ("alpha", "", "module", "Alpha's own.\n\nIndented."),
        ("alpha", "Outer", "class", "An outer class."),
        ("alpha", "Outer.method", "function", "A method."),
        ("alpha", "Outer.method.inner", "function", "An inner function."),
        ("alpha", "fallback", "function", "A fallback."),
        ("pkg", "", "module", "A package."),
        ("pkg.part", "", "module", "A part of it."),
    ]


def test_a_document_is_a_module_or_a_topic(small_library):
    documents = stdlib_documents()
    texts = [text for split in documents.values() for text in split["text"]]
    # "A method." is _pyalpha's already.
    alpha = "Alpha's own.\n\nIndented.\n\nAn outer class.\n\nAn inner function.\n\nA fallback."
    assert alpha in texts and "A part of it." in texts
    assert documents["train"].column_names == documents["validation"].column_names == ["module", "text"]


def test_split_keeps_families_together_and_drops_repeated_texts_from_validation():
    def row(module, text, kind="function"):
        return {"module": module, "name": "", "kind": kind, "text": text}

    def held_out(family):
        digest = hashlib.sha256(f"{stdlib_corpus.HELD_OUT_SALT}{family}".encode()).hexdigest()
        return int(digest, 16) % 100 < stdlib_corpus.HELD_OUT_PERCENT

    inside = next(name for name in map("m{}".format, range(100)) if held_out(name))
    outside = next(name for name in map("m{}".format, range(100)) if not held_out(name))
    large = next(name for name in map("large{}".format, range(100)) if held_out(name))
    rows = [
        row(f"_py{inside}", "on both sides"),
        row(inside, "new"),
        row(f"{inside}.part", "new"),
        row(outside, "on both sides"),
        row(large, "x" * (stdlib_corpus.LARGEST_HELD_OUT_FAMILY + 1)),
        row(inside, "a topic", kind="topic"),
    ]
    splits = stdlib_corpus._split(rows)
    assert [row["text"] for row in splits["validation"]] == ["new"]
    assert [row["text"][:13] for row in splits["train"]] == ["on both sides", "x" * 13, "a topic"]


@pytest.mark.parametrize(
    ("module", "family"),
    [
        ("decimal", "decimal"),
        ("_pydecimal", "decimal"),
        ("_py_abc", "abc"),
        ("sre_parse", "sre"),
        ("email.mime", "email"),
    ],
)
def test_family(module, family):
    assert stdlib_corpus.family_of(module) == family


def test_corpus_of_this_python(docstrings):
    train, validation = docstrings["train"], docstrings["validation"]
    assert train.column_names == ["module", "name", "kind", "text"]
    characters = {split: sum(map(len, docstrings[split]["text"])) for split in docstrings}
    assert characters["train"] > 1_500_000
    assert 0.06 < characters["validation"] / sum(characters.values()) < 0.1

    texts = [*train["text"], *validation["text"]]
    assert len(set(texts)) == len(texts)
    assert all(text == text.strip() != "" for text in texts)
    assert "topic" in train["kind"] and "topic" not in validation["kind"]

    seen, held_out = ({stdlib_corpus.family_of(module) for module in split["module"]} for split in (train, validation))
    assert not seen & held_out
    assert len(held_out) > 15
    modules = {*train["module"], *validation["module"]}
    assert not {part for module in modules for part in module.split(".")} & {"test", "tests", "idle_test", "pip"}
    documented = [row["module"] for row in train if row["kind"] != "topic"]
    assert documented == sorted(documented)


def test_documents_hold_the_text_of_the_docstrings(docstrings):
    documents = stdlib_documents()
    for split, rows in docstrings.items():
        assert "\n\n".join(documents[split]["text"]) == "\n\n".join(rows["text"])
        modules = [row["module"] for row in documents[split] if row["module"] != "pydoc_data.topics"]
        assert len(set(modules)) == len(modules)


def test_corpus_info(docstrings):
    info = corpus_info(docstrings)
    assert info["python_version"] == platform.python_version()
    assert info["validation"]["rows"] == len(docstrings["validation"])
    assert info["train"]["characters"] == sum(map(len, docstrings["train"]["text"]))
    assert re.fullmatch("[0-9a-f]{64}", info["train"]["sha256"])
    assert info["train"]["sha256"] != info["validation"]["sha256"]
    assert corpus_info(stdlib_docstrings()) == info


def test_second_load_is_from_disk_and_fast(docstrings, monkeypatch):
    monkeypatch.setattr(stdlib_corpus, "_docstrings", None)
    start = time.perf_counter()
    again = stdlib_docstrings()
    assert time.perf_counter() - start < 1
    assert again["train"].cache_files
    assert again["train"]._fingerprint == docstrings["train"]._fingerprint


def test_processes_that_build_at_once_share_one_corpus(small_library, monkeypatch):
    both_are_building = threading.Barrier(2, timeout=30)
    docstrings_of = stdlib_corpus._docstrings

    def at_the_same_time(library):
        rows = docstrings_of(library)
        both_are_building.wait()
        return rows

    monkeypatch.setattr(stdlib_corpus, "_docstrings", at_the_same_time)
    found = []
    threads = [threading.Thread(target=lambda: found.append(corpus_info(stdlib_docstrings()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and found[0] == found[1]
    assert len(list((small_library / "cache" / "hf_tfenc_stdlib").iterdir())) == 1  # nothing half-built is left


def test_a_build_that_fails_leaves_nothing(small_library, monkeypatch):
    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(stdlib_corpus, "_save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        stdlib_docstrings()
    assert not list((small_library / "cache" / "hf_tfenc_stdlib").iterdir())


def test_python_without_its_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(OSError) as error:
        stdlib_docstrings()
    assert str(error.value) == (
        f"The built-in corpus needs the sources of Python's standard library, and {tmp_path} holds none: "
        "use a Python that has them, or give your own text with --train_file."
    )


def test_python_without_topics(small_library, monkeypatch):
    def stripped(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(stdlib_corpus, "import_module", stripped)
    with pytest.raises(OSError) as error:
        stdlib_docstrings()
    assert str(error.value) == (
        "The built-in corpus needs the module pydoc_data, which this Python was stripped of: "
        "use a Python that has it, or give your own text with --train_file."
    )
