"""A small Hub on this machine: what huggingface_hub asks of the real one to make, fill and read a model repository."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

USER, TOKEN, READ_TOKEN = "ada", "hf_aTokenThatMayWrite0123456789", "hf_aTokenThatMayRead0123456789"
LARGE = (".safetensors", ".png")  # kept apart from git, as the real one does with what is binary


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    @property
    def sha(self) -> str:
        return hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()

    def oid(self, path: str) -> str | None:
        """The hash by which git, or the store of large files, knows a file."""
        content = self.files.get(path)
        if content is None or path.endswith(LARGE):
            return None if content is None else hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()


class Hub(ThreadingHTTPServer):
    """Runs between `with` and its end. `repositories` and `requests` (method and path) tell what happened."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.faults: list[list] = []
        self.open = threading.Event()  # large files are not taken while it is not set
        self.open.set()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """Of a process that talks to this Hub and no other."""
        return {"HF_ENDPOINT": self.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}

    def fail(self, pattern: str, status: int | None, message: str = "a reason", after: int = 0) -> None:
        """Answer requests whose method and path match with `status`, but the first `after`; with None, cut the connection."""
        self.faults.append([re.compile(pattern), status, message, after])

    def fault(self, request: str) -> list | None:
        for fault in self.faults:
            if fault[0].search(request):
                fault[3] -= 1
                if fault[3] < 0:
                    return fault
        return None

    def handle_error(self, *_) -> None:
        """A client that is gone is no error here."""

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer would wait 40 ms for the one before to be acknowledged
    server: Hub

    ROUTES = [
        ("POST /api/repos/create", "create"),
        ("POST /api/validate-yaml", "validate"),
        ("POST /api/models/(?P<repo>[^/]+/[^/]+)/preupload/main", "preupload"),
        ("POST /(?P<repo>[^/]+/[^/]+).git/info/lfs/objects/batch", "batch"),
        ("PUT /large/(?P<oid>[0-9a-f]+)", "store"),
        ("POST /api/models/(?P<repo>[^/]+/[^/]+)/commit/main", "commit"),
        ("GET /api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(?P<folder>/.*)?", "tree"),
        ("GET /api/models/(?P<repo>[^/]+/[^/]+)(/revision/[^/]+)?", "info"),
        ("(GET|HEAD) /(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    ]

    def handle_request(self) -> None:
        request = f"{self.command} {unquote(urlsplit(self.path).path)}"
        self.server.requests.append(request)
        if fault := self.server.fault(request):
            _, status, message, _ = fault
            length = int(self.headers.get("Content-Length", 0))
            self.rfile.read(length if status else length // 2)
            if status is None:
                self.close_connection = True
                self.connection.close()
            else:
                self.answer({"error": message}, status)
            return
        for pattern, name in self.ROUTES:
            if match := re.fullmatch(pattern, request):
                groups = {key: value for key, value in match.groupdict().items() if key != "repo" or value}
                if name in ("create", "validate", "store"):
                    return getattr(self, name)(**groups)
                return self.of_repository(name, **groups)
        self.answer({"error": "Not found"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def of_repository(self, name, repo, **groups) -> None:
        repository = self.server.repositories.get(repo)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        writes = name in ("preupload", "batch", "commit")
        if repository is None or (repository.private and token not in (TOKEN, READ_TOKEN)):
            self.answer({"error": "Repository not found"}, 404 if token else 401, code="RepoNotFound")
        elif writes and token != TOKEN:
            self.answer({"error": "You don't have the rights to write."}, 403 if token == READ_TOKEN else 401)
        else:
            getattr(self, name)(repository, **groups)

    # --- Writing ---

    def create(self) -> None:
        asked = json.loads(self.body())
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token != TOKEN:
            self.answer({"error": "Invalid credentials"}, 403 if token == READ_TOKEN else 401)
            return
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        if name in self.server.repositories:
            self.answer({"error": "You already created this model repo", "url": f"/{name}"}, 409)
            return
        private = asked["visibility"] == "private" if "visibility" in asked else bool(asked.get("private"))
        self.server.repositories[name] = Repository(private, {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.answer({"url": f"{self.server.endpoint}/{name}", "name": name, "id": name})

    def validate(self) -> None:
        self.body()
        self.answer({"errors": [], "warnings": []})

    def preupload(self, repository) -> None:
        files = json.loads(self.body())["files"]
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": repository.oid(file["path"]),
            }
            for file in files
        ]
        self.answer({"files": modes})

    def batch(self, repository) -> None:
        asked, objects = json.loads(self.body()), []
        for wanted in asked["objects"]:
            known = wanted["oid"] in self.server.large
            actions = {"upload": {"href": f"{self.server.endpoint}/large/{wanted['oid']}"}}
            objects.append({**wanted} if known else {**wanted, "actions": actions})
        # Newer clients go to the store of large files, which is not here, without asking.
        self.answer({"transfer": "xet" if "xet" in asked["transfers"] else "basic", "objects": objects})

    def store(self, oid) -> None:
        self.server.open.wait(60)
        content = self.body()
        if hashlib.sha256(content).hexdigest() != oid:
            self.answer({"error": "not what was announced"}, 400)
            return
        self.server.large[oid] = content
        self.answer({})

    def commit(self, repository) -> None:
        header, *operations = map(json.loads, self.body().splitlines())
        for operation in operations:
            value = operation["value"]
            large = operation["key"] == "lfsFile"
            content = self.server.large[value["oid"]] if large else base64.b64decode(value["content"])
            repository.files[value["path"]] = content
        repository.commits.append(header["value"]["summary"])
        self.answer(
            {"success": True, "commitOid": repository.sha, "commitUrl": f"{self.server.endpoint}/a/b/commit/1"}
        )

    # --- Reading ---

    def info(self, repository) -> None:
        (name,) = [name for name, other in self.server.repositories.items() if other is repository]
        siblings = [{"rfilename": path} for path in repository.files]
        self.answer({"id": name, "private": repository.private, "sha": repository.sha, "siblings": siblings})

    def tree(self, repository, revision, folder) -> None:
        prefix = f"{folder.strip('/')}/" if folder else ""
        files = [
            {"type": "file", "path": path, "size": len(content), "oid": repository.oid(path)}
            for path, content in repository.files.items()
            if path.startswith(prefix)
        ]
        self.answer(files if files else {"error": "Not found"}, 200 if files else 404)

    def resolve(self, repository, revision, path) -> None:
        content, headers = repository.files.get(path), {"X-Repo-Commit": repository.sha}
        if content is None:
            self.answer({"error": "Entry not found"}, 404, headers, code="EntryNotFound")
        else:
            self.answer(content, 200, headers | {"ETag": f'"{repository.oid(path)}"'})

    # --- HTTP ---

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, content, status=200, headers=(), code=None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        if code is not None:
            self.send_header("X-Error-Code", code)
        if status >= 400:
            self.send_header("X-Error-Message", content["error"])
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_) -> None:
        """Say nothing."""
