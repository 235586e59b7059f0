"""Files to read, a cache that goes away, and no network."""

import json
import logging
import socket

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_tfenc.data.stdlib_corpus import stdlib_docstrings


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="session")
def stdlib_cache(tmp_path_factory):
    """What is made from the standard library's sources, once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder := tmp_path_factory.mktemp("stdlib"))
        stdlib_docstrings()
    return folder


@pytest.fixture
def offline(monkeypatch):
    def connect(*_):
        raise AssertionError("a local file needs no network")

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, logger="hf_tfenc")
    return caplog


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        """A file of the kind its name tells: rows for json(l) and parquet, else text or bytes. Returns its path."""
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), encoding="utf-8")
        elif name.endswith(".json"):
            path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        elif name.endswith(".parquet"):
            pq.write_table(content if isinstance(content, pa.Table) else pa.Table.from_pylist(content), path)
        else:
            path.write_bytes(content.encode())
        return str(path)

    return write
