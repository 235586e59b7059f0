"""The program behind the page: Python's own web server, on this machine alone unless asked, and no other connection."""

import json
import logging
import socket
import socketserver
import threading
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

import hf_tfenc

from ..pretrained import class_of, load_whole
from ..tokenization import load_tokenizer, vocabulary_size
from ..training.arguments import OptionError
from ..training.ending import ending_well
from ..training.model import check_kind
from .heads import HEADS, FillMask, Head
from .inside import SHOWN_TOKENS, Masks, attention, positions, rounded, token_texts

logger = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
LARGEST, DISCARDED = 1_000_000, 100_000_000  # bytes of a request: that are read, and that are listened to
PADDING = 8  # tokens at most
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:"


def main(folder: str, host: str, port: int) -> None:
    """The program. It ends as train.py does."""
    ending_well(lambda: serve(folder, host, port))


def serve(folder: str, host: str, port: int) -> None:
    """Show the page until Ctrl-C.

    Raises:
        OptionError, ValueError, OSError: one sentence, where there is no such model, or nothing can listen there.
    """
    server = Server(host, port, Demo(folder))
    with server:
        print(f"{folder} is shown at {server.address} (Ctrl-C ends it).", flush=True)
        if host not in LOOPBACK:
            print("Whoever reaches this machine can open the page.", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def load(folder: str) -> PreTrainedModel:
    """The model in a folder, with the head that it was saved with, on the eager attention that gives its weights.

    Raises:
        OptionError, OSError: there is no model of ours in it, or a damaged one.
    """
    if not Path(folder).is_dir():
        raise OptionError(f"There is no folder {folder}: give the output folder of a training.")
    if not (Path(folder) / "config.json").is_file():
        raise OptionError(
            f"The folder {folder} holds no model (no config.json): give the output folder of a training."
        )
    check_kind(folder, folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    kind = class_of(config, folder)
    transformers_logging.disable_progress_bar()
    model = load_whole(kind, folder, attn_implementation="eager", local_files_only=True)
    return model.eval()


class Demo:
    """What the page asks, and the answers. One request at a time."""

    def __init__(self, folder: str):
        self.model = load(folder)
        self.tokenizer = load_tokenizer(folder, local_files_only=True)
        if vocabulary_size(self.tokenizer) > self.model.config.vocab_size:
            raise OptionError(
                f"The tokenizer in {folder} has more tokens than the model: they do not belong together."
            )
        self.encoder = self.model if isinstance(self.model, hf_tfenc.TfEncModel) else self.model.model
        self.head = HEADS.get(type(self.model).__name__, Head)(self.model, self.tokenizer)
        self.name = Path(folder).resolve().name
        self.asking = threading.Lock()
        self.questions: dict[str, Callable[[dict], dict]] = {
            "/answer": self.answer,
            "/look": self.look,
            "/positions": self.positions,
        }

    def about(self) -> dict[str, Any]:
        """What the page says of the model before anything is asked."""
        config, head = self.model.config, self.head
        wanted = ("title", "hint", "button", "example", "second", "second_example", "temperature")
        return {name: getattr(head, name) for name in wanted} | {
            "name": self.name,
            "head": type(self.model).__name__,
            "parameters": self.model.num_parameters(),
            "layers": [config.sliding_window if kind == "sliding_attention" else None for kind in config.layer_types],
            "heads": config.num_attention_heads,
            "hidden_size": config.hidden_size,
            "position_embedding_type": config.position_embedding_type,
            "look_ahead": config.is_causal,
            "mask": self.tokenizer.mask_token if isinstance(head, FillMask) else None,
            "longest": head.longest,
        }

    def answer(self, request: dict) -> dict:
        """What the head says: `parts`, as heads.py has them."""
        temperature = number(request, "temperature", 0.0, 2.0)
        return {"parts": self.head.answer(text(request, "text"), text(request, "second"), temperature)}

    def look(self, request: dict) -> dict:
        """The tokens of a text, and the attention of one layer and head as a map over them.

        Returns:
            `ids` and `tokens` of the whole row; `weights` and `seen` (queries, keys) of its first tokens
        """
        layer = int(number(request, "layer", 0, len(self.encoder.layers) - 1))
        head = int(number(request, "head", 0, self.model.config.num_attention_heads - 1))
        window = request.get("window")
        masks = Masks(
            padding=int(number(request, "padding", 0, PADDING)),
            hide_padding=bool(request.get("hide_padding", True)),
            look_ahead=bool(request.get("look_ahead", self.model.config.is_causal)),
            window=None if window is None else int(number(request, "window", 0, self.head.longest)),
        )
        encoded = self.head.encode(text(request, "text"), text(request, "second"))
        pad = self.tokenizer.pad_token_id
        weights, seen = attention(self.encoder, encoded.ids, encoded.segments, pad, masks)
        ids = encoded.ids + [pad] * masks.padding
        return {
            "ids": ids,
            "tokens": token_texts(self.tokenizer, ids),
            "special": [token_id in self.tokenizer.all_special_ids for token_id in ids],
            "weights": rounded(weights[layer, head, :SHOWN_TOKENS, :SHOWN_TOKENS]),
            "seen": seen[layer, :SHOWN_TOKENS, :SHOWN_TOKENS].int().tolist(),
        }

    def positions(self, request: dict) -> dict:
        """How the model knows positions, and the table to draw."""
        layer = int(number(request, "layer", 0, len(self.encoder.layers) - 1))
        said, table = positions(self.encoder, layer)
        return {"text": said, "table": None if table is None else rounded(table, 3)}


def text(request: dict, name: str) -> str:
    """A text of a request, empty where there is none. Raises ValueError where it is none."""
    value = request.get(name, "")
    if not isinstance(value, str):
        raise ValueError(f"{name} is no text.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("The text holds half a character (a lone surrogate), which no file can hold.") from None
    return value


def number(request: dict, name: str, low: float, high: float) -> float:
    """A number of a request, 0 where there is none. Raises ValueError where it is none, or none of those allowed."""
    value = request.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; it must be a number from {low} to {high}.")
    return value


class Server(ThreadingHTTPServer):
    """Listens at `host` and `port`; port 0 takes any that is free. Raises OptionError where it cannot."""

    daemon_threads = True

    def __init__(self, host: str, port: int, demo: Demo):
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), partial(Handler, demo))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise OptionError(
                f"Nothing can listen at {host}, port {port} ({reason}): choose another --port, or --host."
            ) from error
        shown = f"[{host}]" if ":" in host else host
        self.address = f"http://{shown}:{self.server_port}"

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own would ask a name server who this is
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that has gone away is no error."""


class Handler(BaseHTTPRequestHandler):
    """GET for the page's files and what it says of the model, POST with JSON for questions."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "hf-tfenc", ""
    timeout = 60
    server: Server

    def __init__(self, demo: Demo, *args: Any):
        self.demo = demo
        super().__init__(*args)

    def do_GET(self) -> None:
        if not self.is_for_us():
            return
        if self.path == "/about":
            self.send_json(200, self.demo.about())
        elif self.path in FILES:
            name, kind = FILES[self.path]
            self.send(200, (PAGE / name).read_bytes(), kind)
        else:
            self.send_json(404, {"error": "There is no such page."})

    def do_POST(self) -> None:
        if not self.is_for_us():
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LARGEST:
            self.close_connection = True
            self.discard(int(length) if length.isdecimal() else 0)
            self.send_json(413, {"error": f"A request takes up to {LARGEST:,} bytes: shorten the text."})
            return
        body = self.rfile.read(int(length))
        question = self.demo.questions.get(self.path)
        if question is None:
            self.send_json(404, {"error": "There is no such question."})
            return
        try:
            request = json.loads(body)
        except (ValueError, RecursionError):
            request = None
        # Another site's page may post a form to this machine, but not JSON.
        if not isinstance(request, dict) or self.headers.get_content_type() != "application/json":
            self.send_json(400, {"error": "A question is a JSON object."})
            return
        try:
            with self.demo.asking:
                answer = question(request)
        except ValueError as refused:
            self.send_json(422, {"error": " ".join(str(refused).split())})
        except Exception:  # the server stays, and the page gets a sentence
            logger.exception("%s could not be answered.", self.path)
            self.send_json(500, {"error": "This could not be answered; the terminal says why."})
        else:
            self.send_json(200, answer)

    def discard(self, length: int) -> None:
        """Read what is sent, for a browser listens only when it has said all."""
        left = min(length, DISCARDED)
        while left and (part := self.rfile.read(min(left, LARGEST))):
            left -= len(part)

    def is_for_us(self) -> bool:
        """Whether the request names this machine, where no other is meant to ask: a name may be made to lead here."""
        try:
            name = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        except ValueError:
            name = None
        if self.server.server_address[0] in LOOPBACK and name not in LOOPBACK:
            self.close_connection = True
            self.send_json(421, {"error": f"This page is at {self.server.address}."})
            return False
        return True

    def send_json(self, status: int, answer: dict) -> None:
        self.send(status, json.dumps(answer).encode(), "application/json")

    def send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Not a line for each request."""
