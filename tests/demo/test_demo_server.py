"""The program behind the page: what it serves, what it refuses, and to whom."""

import http.client
import json
import socket

import pytest
from transformers import BertConfig, BertForMaskedLM
from typer.testing import CliRunner

from hf_tfenc.cli import app
from hf_tfenc.demo import server as server_module
from hf_tfenc.demo.server import Demo


def refusal(*argv):
    """The one sentence of a user's mistake."""
    result = CliRunner().invoke(app, ["demo", *map(str, argv)])
    assert result.exit_code == 2 and result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    return result.stderr.removeprefix("Error: ").strip()


def test_the_page_and_what_it_is_made_of(call):
    status, page = call("/")
    assert status == 200 and "<!doctype html>" in page and "http" not in page
    for name in ("page.css", "page.js"):
        assert name in page and call(f"/{name}")[0] == 200
    about = call("/about")[1]
    assert (about["name"], about["head"], about["layers"], about["heads"]) == (
        "mlm",
        "TfEncForMaskedLM",
        [None, 64],
        2,
    )
    assert about["mask"] == "[MASK]" and about["longest"] == 64


def test_a_question_is_answered(call):
    status, answer = call("/answer", {"text": "the [MASK]"})
    assert status == 200 and len(answer["parts"][0]["bars"]) == 8
    status, seen = call("/look", {"text": "the [MASK]", "layer": 1, "head": 1, "padding": 4})
    assert status == 200 and len(seen["tokens"]) == len(seen["weights"]) == len(seen["seen"]) == len(seen["ids"])
    assert seen["tokens"][-4:] == ["[PAD]"] * 4 and seen["special"][0] and not seen["special"][1]
    assert call("/look", {"text": "the [MASK]", "layer": 1, "head": 0, "padding": 4})[1]["weights"] != seen["weights"]
    ahead = call("/look", {"text": "the [MASK]", "look_ahead": True, "window": 1})[1]["seen"]
    assert ahead[0] == [1] + [0] * (len(ahead) - 1) and ahead[2][:3] == [0, 1, 1]
    assert len(call("/positions", {"layer": 0})[1]["table"]) == 64


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("/answer", {"text": ""}, 422, "The text is empty: write something."),
        ("/answer", {"text": "x" * 50_000}, 422, "50,000 characters"),
        ("/answer", {"text": "the cat"}, 422, "holds no [MASK]"),
        ("/answer", {"text": 5}, 422, "text is no text."),
        ("/answer", {}, 422, "The text is empty"),
        ("/answer", {"text": "[MASK]", "temperature": "hot"}, 422, "temperature is 'hot'"),
        ("/answer", b'{"text": "\\ud800"}', 422, "half a character"),
        ("/answer", b'{"text": "a", "temperature": NaN}', 422, "temperature is nan"),
        ("/look", {"text": "a", "layer": 7}, 422, "layer is 7; it must be a number from 0 to 1."),
        ("/look", {"text": "a", "head": -1}, 422, "head is -1"),
        ("/look", {"text": "a", "window": "far"}, 422, "window is 'far'"),
        ("/look", {"text": "a", "padding": True}, 422, "padding is True"),
        ("/answer", b"[1]", 400, "A question is a JSON object."),
        ("/answer", b"{", 400, "A question is a JSON object."),
        ("/answer", b"[" * 100_000, 400, "A question is a JSON object."),
        ("/answer", b"\xff", 400, "A question is a JSON object."),
        ("/answer", b" " * 1_000_001, 413, "up to 1,000,000 bytes"),
        ("/other", {}, 404, "no such question"),
        ("/../server.py", None, 404, "no such page"),
    ],
)
def test_what_is_wrong_is_a_sentence(call, path, body, status, sentence):
    found, answer = call(path, body)
    assert found == status and sentence in answer["error"] and "Traceback" not in answer["error"]


def test_what_breaks_is_said_in_the_terminal(call, server, monkeypatch, caplog):
    def broken(request):
        raise KeyError("a secret of the program")

    monkeypatch.setitem(server.RequestHandlerClass.args[0].questions, "/answer", broken)
    status, answer = call("/answer", {"text": "a"})
    assert status == 500 and answer == {"error": "This could not be answered; the terminal says why."}
    assert "a secret of the program" in caplog.text
    assert call("/about")[0] == 200


def test_other_sites_cannot_ask(call):
    assert call("/about", Host="evil.example:80")[0] == 421
    assert call("/answer", {"text": "[MASK]"}, Host="evil.example:80")[0] == 421
    assert call("/answer", {"text": "[MASK]"}, Content_Type="text/plain")[0] == 400
    assert call("/about", Host="[evil")[0] == 421
    assert call("/about", Host="localhost:1")[0] == call("/about", Host="LOCALHOST")[0] == 200


def test_nothing_may_be_loaded_from_elsewhere(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
    connection.request("GET", "/")
    policy = connection.getresponse().headers["Content-Security-Policy"]
    connection.close()
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy


def test_a_long_text_is_drawn_in_part(build, folder, call, server, monkeypatch):
    monkeypatch.setattr(server_module, "SHOWN_TOKENS", 5)
    seen = call("/look", {"text": "the old fox draws the river"})[1]
    assert len(seen["tokens"]) > 5 and len(seen["weights"]) == len(seen["weights"][0]) == len(seen["seen"]) == 5


def test_nothing_is_asked_of_the_network(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"a connection to {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "getfqdn", refuse)
    with server_module.Server("127.0.0.1", 0, Demo(str(folder))) as server:
        assert server.address == f"http://127.0.0.1:{server.server_port}"


def test_mistakes_are_one_sentence(folder, server, tmp_path, tokenizer):
    assert refusal(tmp_path / "nothing").startswith("There is no folder")
    assert "holds no model (no config.json)" in refusal(tmp_path)
    assert f"port {server.server_port} (Address already in use): choose another --port" in refusal(
        folder, "--port", server.server_port
    )
    assert "Nothing can listen at 127.0.0.1, port 99999" in refusal(folder, "--port", 99999)
    assert "Nothing can listen at no.such.host.invalid" in refusal(folder, "--host", "no.such.host.invalid")


def test_models_that_cannot_be_shown_are_refused(folder, build, tmp_path, tokenizer):
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertForMaskedLM(BertConfig(vocab_size=300, **small)).save_pretrained(tmp_path / "bert")
    assert "is a bert model" in refusal(tmp_path / "bert")
    model = build()
    model.save_pretrained(tmp_path / "bare")
    assert "holds no tokenizer" in refusal(tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").write_bytes(b"broken")
    assert "cannot be read" in refusal(tmp_path / "bare")
    build("TfEncModel").save_pretrained(tmp_path / "headless")
    config = json.loads((tmp_path / "headless" / "config.json").read_text())
    (tmp_path / "headless" / "config.json").write_text(json.dumps(config | {"architectures": ["TfEncForMaskedLM"]}))
    assert "has no decoder" in refusal(tmp_path / "headless") or "has no head" in refusal(tmp_path / "headless")
    build(vocab_size=290).save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    assert "more tokens than the model" in refusal(tmp_path / "small")


def test_a_page_for_all_is_said_to_be_one(folder, monkeypatch, capsys):
    monkeypatch.setattr(server_module.Server, "serve_forever", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    server_module.serve(str(folder), "0.0.0.0", 0)
    assert "Whoever reaches this machine can open the page." in capsys.readouterr().out
    server_module.serve(str(folder), "127.0.0.1", 0)
    assert "Whoever" not in capsys.readouterr().out
