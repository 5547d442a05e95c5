"""A real MLflow server, and proxies between it and a client."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import requests


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Server:
    """`mlflow server` on a SQLite store; it can be killed and started again at the same address."""

    def __init__(self, folder: Path, store: str, options: Sequence[str] = (), **environment: str) -> None:
        self._folder, self._store, self._options, self._environment = folder, store, options, environment
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port),
                "--backend-store-uri", self._store, "--artifacts-destination", str(self._folder / "served"),
                "--workers", "1", *self._options,
            ],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **self._environment},  # a process less
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        while True:
            assert self._process.poll() is None, "the server did not start"
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{self.uri}/health", timeout=1).ok:
                    return
            time.sleep(0.2)

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


class Between:
    """Stands between a client and a server, and does what networks and servers do on a bad day.

    Attributes:
        fault: None (passes everything on), "refuses" (breaks each connection off), "hangs" (takes it and says nothing),
            "slow" (answers after 5 s), "500", "429", or "half" (half of each response).
        lives: whether it says meanwhile that it does, as a server does whose database is away.
    """

    SLOW = 5.0  # s

    def __init__(self, port: int) -> None:
        self._port = port
        self.lives = False
        self._fault: str | None = None
        self._connections: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def fault(self) -> str | None:
        return self._fault

    @fault.setter
    def fault(self, fault: str | None) -> None:
        self._fault = fault
        for connection in self._connections:  # those that are kept alive are of the time before
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._connections.clear()

    def close(self) -> None:
        self.fault = "refuses"
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                self._connections.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            fault = self._fault
            if fault and self.lives and client.recv(12, socket.MSG_PEEK).startswith(b"GET /health "):
                client.recv(65536)
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nOK")
                return
            if fault == "refuses":
                return
            while fault == "hangs" and self._fault == "hangs":
                time.sleep(0.05)
            if fault in ("500", "429"):
                client.recv(65536)
                client.sendall(
                    f"HTTP/1.1 {fault} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
                )
                return
            if fault == "slow":
                time.sleep(self.SLOW)
            with socket.create_connection(("127.0.0.1", self._port)) as server:
                self._connections.append(server)
                up = threading.Thread(target=pass_on, args=(client, server, False), daemon=True)
                up.start()
                pass_on(server, client, fault == "half")


def pass_on(source: socket.socket, sink: socket.socket, half: bool) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            if half:
                sink.sendall(data[: len(data) // 2])
                break
            sink.sendall(data)
        for one in (source, sink):
            one.shutdown(socket.SHUT_RDWR)


class Proxy:
    """A proxy before a server, which answers some requests itself.

    Attributes:
        answers: part of a path -> status, content type and body of its own answer.
        asked: method and path of each of these.
    """

    def __init__(self, uri: str) -> None:
        self.answers: dict[str, tuple[int, str, bytes]] = {}
        self.asked: list[tuple[str, str]] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                own = next((answer for part, answer in proxy.answers.items() if part in self.path), None)
                if own is not None:
                    proxy.asked.append((self.command, self.path))
                    self.answer(*own)
                    return
                headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
                there = requests.request(
                    self.command, uri + self.path, data=body, headers=headers, timeout=60
                )
                self.answer(there.status_code, there.headers.get("Content-Type", ""), there.content)

            do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_GET

            def answer(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
