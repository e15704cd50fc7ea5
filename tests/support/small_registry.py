"""A schema registry that is small, starts at once, and can be ill: the two requests of Confluent's API that read."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class SmallRegistry:
    """The two requests of Confluent's API that read schemas."""

    def __init__(self, tls=None):
        self.by_id, self.versions, self.asked, self.user = {}, {}, [], None
        self.no_serialized = False
        self.ill: tuple[int, bytes] | None = None  # what it answers instead
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                path = self.path.split("?")[0]
                outer.asked.append(self.path)
                status, body = outer.answer(path, "format=serialized" in self.path, self.headers.get("Authorization"))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *words):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, path, serialized, authorization):
        if self.ill is not None:
            return self.ill
        if self.user is not None and authorization != "Basic " + base64.b64encode(self.user).decode():
            return 401, b'{"error_code": 401, "message": "Unauthorized"}'
        found = self.by_id if path.startswith("/schemas/ids/") else self.versions
        schema = found.get(path.rsplit("/", 1)[1] if found is self.by_id else path)
        if schema is None:
            return 404, b'{"error_code": 40403, "message": "Schema not found"}'
        if serialized and self.no_serialized:
            return 500, b'{"message": "Internal server error"}'
        if serialized and "serialized" in schema:
            schema = schema | {"schema": schema["serialized"]}
        return 200, json.dumps(schema).encode()

    def add(self, number, text, kind="AVRO", references=(), **more):
        """Register a schema; `references` are (name, subject)."""
        listed = [{"name": name, "subject": subject, "version": 1} for name, subject in references]
        schema = {"schema": text, "schemaType": kind, "references": listed, **more}
        self.by_id[str(number)] = schema | {"id": number}
        self.versions[f"/subjects/s{number}/versions/1"] = schema | {
            "id": number,
            "subject": f"s{number}",
            "version": 1,
        }

    def close(self):
        self._server.shutdown()
        self._server.server_close()
