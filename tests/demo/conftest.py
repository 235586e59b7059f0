"""Small models of every head, and a page that shows one."""

import http.client
import json
import threading

import pytest
import torch

import hf_tfenc
from hf_tfenc.demo.heads import HEADS, Head
from hf_tfenc.presets import preset_config

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="session")
def build(tokenizer):
    """A model of a class's name, untrained, that knows the tokenizer of the tests."""

    def build(name="TfEncForMaskedLM", preset="modern-tiny", **options):
        torch.manual_seed(0)
        known = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        known |= {"eos_token_id": tokenizer.sep_token_id, "attn_implementation": "eager"}
        return getattr(hf_tfenc, name)(preset_config(preset, **SIZES | known | options)).eval()

    return build


@pytest.fixture
def head(build, tokenizer):
    """The page's head for such a model."""

    def head(name, **options):
        return HEADS.get(name, Head)(build(name, **options), tokenizer)

    return head


@pytest.fixture(scope="session")
def folder(build, tokenizer, tmp_path_factory):
    """A folder with a model for masks."""
    path = tmp_path_factory.mktemp("demo") / "mlm"
    build().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def server(folder):
    """A page that is shown."""
    from hf_tfenc.demo.server import Demo, Server

    with Server("127.0.0.1", 0, Demo(str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def call(server):
    """Status and answer of a request; `body` is sent as JSON unless it is bytes."""

    def call(path, body=None, method=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        sent = {
            "Content-Type": "application/json",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        connection.request(method or ("GET" if body is None else "POST"), path, data, sent)
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        kind = response.headers.get_content_type()
        return response.status, json.loads(answer) if kind == "application/json" else answer.decode()

    return call
