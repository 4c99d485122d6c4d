"""A stand-in for the Hugging Face hub: as much of it as it takes to publish small files and to read them again."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.append(self.headers["Authorization"])
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            repo = "/".join(filter(None, (asked.get("organization") or "me", asked["name"])))
            if repo in self.server.repositories:
                self._say(409, {"error": "there already", "url": f"{self.server.address}/{repo}"})
            else:
                self.server.repositories[repo] = {}
                self._say(200, {"url": f"{self.server.address}/{repo}"})
        elif self.path == "/api/validate-yaml":
            self._say(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self._say(
                200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        elif "/commit/" in self.path:
            repo = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.repositories[repo][line["value"]["path"]] = content
            self._say(200, {"commitUrl": f"{self.server.address}/{repo}/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self._say(404, {"error": "no such page"})

    def do_GET(self):
        repo, _, rest = self.path.lstrip("/").partition("/resolve/")
        name = rest.partition("/")[2]
        files = self.server.repositories.get(repo)
        if files is None or name not in files:
            missing = "RepoNotFound" if files is None else "EntryNotFound"
            self._say(404, {"error": missing}, {"X-Error-Code": missing})
            return
        etag = hashlib.sha1(files[name]).hexdigest()
        self._say(200, files[name], {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def _say(self, status, body, headers=()):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {**dict(headers), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub():
    """The server; ``repositories`` holds its files by name, ``tokens`` what it was shown."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.repositories, server.tokens = {}, []
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
