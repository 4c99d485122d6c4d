"""The local web page of a user study. It listens on this machine only, unless told otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from restoration_env.benchmarks.study import Study
from restoration_env.errors import InvalidArgument

_PAGE = Path(__file__).with_name("study_page.html")
_LARGEST = 10_000  # bytes of a request


def study_server(study: Study, host: str = "127.0.0.1", port: int = 8000) -> ThreadingHTTPServer:
    """A server of the study's page, ready for ``serve_forever``; port 0 takes any free one.

    Raises:
        InvalidArgument: if it cannot listen there.
    """
    handler = type("StudyHandler", (_Handler,), {"study": study})
    try:
        return ThreadingHTTPServer((host, port), handler)
    except (OSError, OverflowError) as error:
        raise InvalidArgument("host and port", "where this machine can listen", f"{host}:{port} ({error})") from None


class _Handler(BaseHTTPRequestHandler):
    study: Study
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """The page, a rater's next question, or a picture."""
        address = urlsplit(self.path)
        given = {name: values[0] for name, values in parse_qs(address.query).items()}
        paths: dict[str, Callable[[], None]] = {
            "/": self._page,
            "/next": lambda: self._next(given),
            "/picture": lambda: self._picture(given),
        }
        self._answered(paths.get(address.path))

    def do_POST(self) -> None:
        """A new rater, or an answer."""
        paths = {"/begin": self._begin, "/answer": self._answer}
        self._answered(paths.get(urlsplit(self.path).path))

    def _answered(self, do: Callable[[], None] | None) -> None:
        if do is None:
            self._send_json({"error": "there is no such page"}, HTTPStatus.NOT_FOUND)
            return
        try:
            do()
        except InvalidArgument as error:
            self._send_json({"error": str(error)}, HTTPStatus.BAD_REQUEST)
        except (KeyError, TypeError, ValueError) as error:
            self._send_json({"error": f"the request is not complete: {error}"}, HTTPStatus.BAD_REQUEST)

    def _page(self) -> None:
        about = {"title": self.study.title, "questions": self.study.questions, "id": self.study.path.name}
        known = json.dumps(about).replace("<", "\\u003c")
        page = _PAGE.read_text(encoding="utf-8").replace("/*STUDY*/{}", known)
        self._send(page.encode(), "text/html; charset=utf-8")

    def _next(self, given: dict[str, str]) -> None:
        question, done = self.study.next_question(given["rater"])
        shown = question and {"id": question.id, "part": question.part, "count": len(question.shown)}
        self._send_json({"question": shown, "done": done, "total": self.study.questions})

    def _picture(self, given: dict[str, str]) -> None:
        png = self.study.picture(given["rater"], int(given["question"]), int(given["place"]))
        self._send(png, "image/png")

    def _begin(self) -> None:
        self._send_json({"rater": self.study.begin(str(self._body().get("name", "")))})

    def _answer(self) -> None:
        body = self._body()
        places = [int(place) for place in body["places"]]
        self.study.answer(str(body["rater"]), int(body["question"]), places, float(body["seconds"]))
        self._send_json({"kept": True})

    def _body(self) -> dict[str, Any]:
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 < length <= _LARGEST:
            self.close_connection = True
            raise InvalidArgument("the request", f"of 1 to {_LARGEST} bytes", length)
        body = json.loads(self.rfile.read(length))
        if not isinstance(body, dict):
            raise InvalidArgument("the request", "a JSON object", type(body).__name__)
        return body

    def _send_json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(value).encode(), "application/json", status)

    def _send(self, content: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing: a rater's token would stand in the log."""
