"""Tests that delivery reaches whatever MLflow's own client can reach, and writes down no secret."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import mlflow
import psutil
import pytest

import mlflow_tfmon
from mlflow_tfmon.delivery.sync import find_waiting
from tests.servers import Server

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(600)]
USER, PASSWORD, TOKEN = "ann", "pa55-w0rd-of-ann", "t0ken-of-ann"

SCRIPT = """
import keras, numpy as np
import mlflow_tfmon

mlflow_tfmon.autolog(delivery_wait=60.0, report=False)
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
model.fit(np.ones((800, 2)), np.ones(800), batch_size=16, epochs=2, verbose=0)
"""


class Front:
    """What stands before a server: TLS, a password or token that it asks for, or a proxy for all there is.

    Attributes:
        asked: the first line of each request that came through.

    Args:
        port: of the server behind it.
        wanted: the Authorization header that a request must have, or None.
        tls: certificate and key, or None.
    """

    def __init__(self, port: int, wanted: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        self._port, self._wanted, self._tls = port, wanted, tls
        self.asked: list[str] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            if self._tls is not None:
                client = self._tls.wrap_socket(client, server_side=True)
            asked = b""
            while b"\r\n\r\n" not in asked:
                more = client.recv(65536)
                if not more:
                    return
                asked += more
            lines, _, body = asked.partition(b"\r\n\r\n")
            first, *headers = lines.decode("latin-1").split("\r\n")
            self.asked.append(first)
            given = {name.lower(): value for name, _, value in (line.partition(": ") for line in headers)}
            if self._wanted is not None and given.get("authorization") != self._wanted:
                client.sendall(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            method, address, version = first.split(" ")
            path = "/" + address.split("/", 3)[3] if "://" in address else address  # as a proxy is asked
            kept = [
                line for line in headers if not line.lower().startswith(("connection:", "proxy-", "host:"))
            ]
            host = f"Host: 127.0.0.1:{self._port}"  # which is all that MLflow's server answers to
            request = "\r\n".join([f"{method} {path} {version}", host, *kept, "Connection: close"])
            # All of it first, then the answer: a TLS connection is not for two threads at once.
            length, chunked = (
                int(given.get("content-length", 0)),
                "chunked" in given.get("transfer-encoding", ""),
            )
            while len(body) < length or (chunked and not body.endswith(b"0\r\n\r\n")):
                more = client.recv(65536)
                if not more:
                    return
                body += more
            with socket.create_connection(("127.0.0.1", self._port)) as server:
                server.sendall(request.encode("latin-1") + b"\r\n\r\n" + body)
                while data := server.recv(65536):
                    client.sendall(data)


@pytest.fixture(scope="module")
def server(store_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copyfile(store_template, folder / "mlflow.db")
    one = Server(folder, f"sqlite:///{folder}/mlflow.db")
    yield one
    one.kill()


@pytest.fixture
def certificates(tmp_path: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate authority of one's own, and a server's certificate by it."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True)

    key = ["-newkey", "rsa:2048", "-nodes"]
    openssl(
        "req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=a private CA"
    )
    openssl("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=127.0.0.1")
    (tmp_path / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    by = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names"]
    openssl("x509", "-req", "-in", "server.csr", *by, "-out", "server.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    return tmp_path / "ca.pem", context


Trained = Callable[..., str]


@pytest.fixture
def train(home: Path, tmp_path: Path) -> Trained:
    """Trains in a process of its own, in this environment and in none of the developer's."""

    def trained(
        uri: str,
        within: Sequence[str] = (),
        script: str = SCRIPT,
        arguments: Sequence[str] = (),
        **environment: str,
    ) -> str:
        ours = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        own = {**ours, "MLFLOW_TRACKING_URI": uri, "MLFLOW_TFMON_RAISE_ERRORS": "0", **environment}
        said = tmp_path / "said"  # a pipe would end with delivery, which outlives the training
        with said.open("w") as file:
            subprocess.run(
                [*within, sys.executable, "-c", script, *arguments],
                env=own, cwd=tmp_path, check=True, stdout=file, stderr=file,
            )  # fmt: skip
        return said.read_text()

    return trained


def runs(server: Server) -> list[str]:
    return [run.info.run_id for run in mlflow.MlflowClient(server.uri).search_runs(["0"])]


def check(server: Server, before: list[str]) -> None:
    (run_id,) = set(runs(server)) - set(before)
    run = mlflow.MlflowClient(server.uri).get_run(run_id)
    assert (run.info.status, run.data.tags["tfmon.delivery"]) == ("FINISHED", "complete")
    assert mlflow_tfmon.load_run(run_id, server.uri).steps.index.tolist() == list(range(1, 101))
    assert [
        one.name
        for one in mlflow.MlflowClient(server.uri).search_logged_models(["0"])
        if one.source_run_id == run_id
    ]
    assert find_waiting() == []


def basic() -> str:
    return "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


@pytest.mark.parametrize("how", ["password", "token", "address"])
def test_a_server_that_asks_who_it_is(how: str, server: Server, train: Trained, home: Path) -> None:
    front = Front(server.port, f"Bearer {TOKEN}" if how == "token" else basic())
    before, uri = runs(server), f"http://127.0.0.1:{front.port}"
    if how == "password":
        said = train(uri, MLFLOW_TRACKING_USERNAME=USER, MLFLOW_TRACKING_PASSWORD=PASSWORD)
    elif how == "token":
        said = train(uri, MLFLOW_TRACKING_TOKEN=TOKEN)
    else:
        said = train(f"http://{USER}:{PASSWORD}@127.0.0.1:{front.port}")
    front.close()
    check(server, before)
    assert not any(secret in said for secret in (PASSWORD, TOKEN))


def deliveries(home: Path) -> list[psutil.Process]:
    """The processes that deliver what a home holds."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("MLFLOW_TFMON_HOME") == str(home) and process.pid != os.getpid():
                found.append(process)
    return found


@pytest.mark.parametrize("how", ["password", "token", "address"])
def test_no_secret_is_written_down(how: str, server: Server, train: Trained, home: Path) -> None:
    """The server does not let it in, so that all that is written stays on the disk."""
    front = Front(server.port, "Bearer another")
    uri, here = f"http://127.0.0.1:{front.port}", {"MLFLOW_TFMON_DELIVERY_WAIT": "2"}
    if how == "password":
        here |= {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    elif how == "token":
        here |= {"MLFLOW_TRACKING_TOKEN": TOKEN}
    else:
        uri = f"http://{USER}:{PASSWORD}@127.0.0.1:{front.port}"
    before = runs(server)
    said = train(uri, **here)
    assert runs(server) == before
    (waiting,) = find_waiting()
    assert waiting.records and "mlflow-tfmon sync" in said
    secrets = [PASSWORD, TOKEN, basic().removeprefix("Basic ")]
    written = b"".join(file.read_bytes() for file in home.rglob("*") if file.is_file())
    assert len(written) > 10_000
    assert not [secret for secret in secrets if secret.encode() in written or secret in said]
    given = [word for process in deliveries(home) for word in process.cmdline()]  # which everybody can see
    assert given and not [secret for secret in secrets if secret in " ".join(given)]
    front.close()


ADMIN = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "pa55-w0rd-of-admin"}
LOOP = """
import time
import tensorflow as tf
from pathlib import Path
import mlflow_tfmon

mlflow_tfmon.autolog(delivery_wait=%s, report=False)
v, optimizer = tf.Variable([1.0, 2.0]), tf.keras.optimizers.SGD(0.001)
end, steps = Path("end"), Path("steps")
for step in range(1, 1_000_000):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(v * v)
    optimizer.apply_gradients([(tape.gradient(loss, v), v)])
    time.sleep(0.005)
    steps.write_text(str(step))
    if end.exists():
        break
"""


@pytest.fixture
def guarded(store: str, tmp_path: Path) -> Iterator[Server]:
    """A server with MLflow's own basic-auth, with a user."""
    pytest.importorskip("flask_wtf", reason="MLflow's basic-auth needs it")
    (tmp_path / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = sqlite:///{tmp_path}/auth.db\n"
        "admin_username = admin\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    one = Server(
        tmp_path, store, ["--app-name", "basic-auth"], MLFLOW_AUTH_CONFIG_PATH=str(tmp_path / "auth.ini"),
        MLFLOW_FLASK_SERVER_SECRET_KEY="any", MLFLOW_AUTH_ADMIN_PASSWORD=ADMIN["MLFLOW_TRACKING_PASSWORD"],
    )  # fmt: skip
    yield one
    one.kill()


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("back", ["while it trains", "after its end"])
@pytest.mark.parametrize("what", ["password", "permission"])
def test_what_a_user_may_is_taken_away_in_mid_run(
    what: str,
    back: str,
    guarded: Server,
    store: str,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in ADMIN.items():
        monkeypatch.setenv(name, value)
    from mlflow.server.auth.client import AuthServiceClient

    admin = AuthServiceClient(guarded.uri)
    admin.create_user(USER, PASSWORD)
    client = mlflow.MlflowClient(store)  # of the disk, whoever may what
    of_ann = {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    making = {**os.environ, **of_ann, "MLFLOW_TRACKING_URI": guarded.uri}
    command = [sys.executable, "-m", "mlflow", "experiments", "create", "--experiment-name", "of ann"]
    subprocess.run(command, env=making, check=True, capture_output=True)  # so that she may manage it
    number = client.get_experiment_by_name("of ann").experiment_id
    ours = {**making, "MLFLOW_TFMON_RAISE_ERRORS": "0", "MLFLOW_EXPERIMENT_NAME": "of ann"}
    script = LOOP % (5.0 if "after" in back else 60.0)
    with (tmp_path / "said").open("w") as said:
        training = subprocess.Popen(
            [sys.executable, "-c", script], env=ours, cwd=tmp_path, stdout=said, stderr=said
        )

    def taken(away: bool) -> None:
        if what == "password":
            admin.update_user_password(USER, "another pa55-w0rd" if away else PASSWORD)
        elif away:
            admin.revoke_user_permission(USER, "experiment", number)
        else:
            admin.grant_user_permission(USER, "experiment", number, "MANAGE")

    def until(holds: Callable[[], object], seconds: float = 240) -> None:
        give_up = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < give_up, (tmp_path / "said").read_text()
            time.sleep(0.2)

    def arrived() -> int:
        points = [
            point.step
            for run in client.search_runs([number])
            for point in client.get_metric_history(run.info.run_id, "batch/loss")
        ]
        return max(points, default=0)

    try:
        until(lambda: arrived() > 50)
        taken(away=True)
        until(lambda: [one for one in find_waiting() if one.error])
        time.sleep(15)  # more often than a call is tried
        (waiting,) = find_waiting()
        assert ("401" in str(waiting.error)) == (what == "password") and PASSWORD not in str(waiting.error)
        if "while" in back:
            at = arrived()
            taken(away=False)
            until(lambda: arrived() > at)
        (tmp_path / "end").touch()
        assert training.wait(180) == 0
        if "after" in back:
            assert find_waiting()
            taken(away=False)
        # Delivery goes on for a minute, which does not suffice for all on a busy machine.
        sync = [sys.executable, "-m", "mlflow_tfmon.cli", "sync"]
        until(lambda: not subprocess.run(sync, env=ours, capture_output=True).returncode)
    finally:
        training.kill()
    until(lambda: not find_waiting())
    (run,) = client.search_runs([number])
    assert (run.info.status, run.data.tags["tfmon.delivery"]) == ("FINISHED", "complete"), run.data.tags
    assert "tfmon.refused" not in run.data.tags
    steps = mlflow_tfmon.load_run(run.info.run_id, guarded.uri).steps.index.tolist()
    assert steps == list(range(1, int((tmp_path / "steps").read_text()) + 1))
    text = (tmp_path / "said").read_text()
    assert PASSWORD not in text and "Traceback" not in text
    # Once; and once more where the server was too busy to answer before.
    assert 1 <= text.count("delivery to MLflow is waiting") <= 2, text


LATER = """
import os, sys
import keras, numpy as np
import mlflow_tfmon

mlflow_tfmon.autolog(delivery_wait=60.0, report=False)  # the first is known to be away long before
for token in ({}, {"MLFLOW_TRACKING_TOKEN": sys.argv[1]}):
    os.environ.update(token)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(np.ones((800, 2)), np.ones(800), batch_size=16, epochs=2, verbose=0)
"""


def test_a_token_that_is_set_after_the_first_training(server: Server, train: Trained, home: Path) -> None:
    """As in a notebook: delivery, which was started before, goes by it too."""
    front, before = Front(server.port, f"Bearer {TOKEN}"), runs(server)
    said = train(f"http://127.0.0.1:{front.port}", script=LATER, arguments=[TOKEN])
    give_up = time.monotonic() + 150
    while find_waiting():
        assert time.monotonic() < give_up, said
        time.sleep(0.2)
    front.close()
    made = [mlflow.MlflowClient(server.uri).get_run(run_id) for run_id in set(runs(server)) - set(before)]
    assert [run.info.status for run in made] == ["FINISHED"] * 2
    for run in made:
        steps = mlflow_tfmon.load_run(run.info.run_id, server.uri).steps
        assert steps.index.tolist() == list(range(1, 101))
    assert TOKEN not in said


def test_a_run_that_is_not_there_is_said_without_the_password(server: Server) -> None:
    mlflow.set_tracking_uri(f"http://{USER}:{PASSWORD}@127.0.0.1:{server.port}")
    try:
        with (
            pytest.raises(mlflow_tfmon.SettingError, match=f"no such run in {server.uri}") as raised,
            mlflow_tfmon.Monitor(run_id="0" * 32),
        ):
            pass
    finally:
        mlflow.set_tracking_uri("")
    assert PASSWORD not in str(raised.value)


def test_https_with_a_private_ca(
    server: Server, train: Trained, certificates: tuple[Path, ssl.SSLContext]
) -> None:
    authority, context = certificates
    front = Front(server.port, basic(), context)
    before, uri = runs(server), f"https://127.0.0.1:{front.port}"
    credentials = {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    train(uri, MLFLOW_TRACKING_SERVER_CERT_PATH=str(authority), **credentials)
    check(server, before)
    before = runs(server)
    train(uri, MLFLOW_TRACKING_INSECURE_TLS="true", **credentials)
    check(server, before)
    before = runs(server)
    train(uri, REQUESTS_CA_BUNDLE=str(authority), **credentials)
    check(server, before)
    front.close()


def test_a_server_behind_a_proxy(server: Server, train: Trained) -> None:
    front, before = Front(server.port), runs(server)
    train("http://mlflow.invalid", http_proxy=f"http://127.0.0.1:{front.port}", no_proxy="")
    check(server, before)
    assert front.asked and all("http://mlflow.invalid/" in line for line in front.asked)
    front.close()


RESOLVES = "import socket; socket.gethostbyname('localhost')"
LISTENS = "import socket; socket.create_connection(socket.create_server(('127.0.0.1', 0)).getsockname())"


def apart(*command: str, without: str) -> list[str]:
    """A command that runs what follows it on a machine where a line of Python fails."""
    if os.name != "posix" or os.getuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a machine of another kind is made by root, with unshare")
    there = subprocess.run([*command, sys.executable, "-c", without], capture_output=True)
    if b"socket" not in there.stderr:
        pytest.skip(f"it cannot be made here: {there.stderr.decode()[-200:]}")
    return list(command)


def test_a_machine_that_does_not_know_the_name_localhost(
    server: Server, train: Trained, tmp_path: Path
) -> None:
    (tmp_path / "hosts").write_text("")
    hide = f'mount --bind {tmp_path}/hosts /etc/hosts && exec "$@"'
    within = apart("unshare", "--mount", "sh", "-c", hide, "sh", without=RESOLVES)
    before = runs(server)
    train(server.uri, within)
    check(server, before)


def test_a_machine_without_any_network(train: Trained, store: str) -> None:
    within = apart("unshare", "--net", without=LISTENS)  # not even to itself
    train(store, within)
    (run,) = mlflow.MlflowClient(store).search_runs(["0"])
    assert (run.info.status, run.data.tags["tfmon.delivery"]) == ("FINISHED", "complete")
    assert mlflow_tfmon.load_run(run.info.run_id, store).steps.index.tolist() == list(range(1, 101))
    assert find_waiting() == []


def test_a_folder_with_mlflows_permission(train: Trained, tmp_path: Path) -> None:
    uri = (tmp_path / "runs").as_uri()
    train(uri, MLFLOW_ALLOW_FILE_STORE="true")
    assert find_waiting() == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        (run,) = mlflow.MlflowClient(uri).search_runs(["0"])
        assert (run.info.status, run.data.tags["tfmon.delivery"]) == ("FINISHED", "complete")
        assert mlflow_tfmon.load_run(run.info.run_id, uri).steps.index.tolist() == list(range(1, 101))


@pytest.mark.parametrize("uri", ["databricks", "databricks://nobody", "folder without permission"])
def test_a_store_that_cannot_be_had_loses_nothing(
    uri: str, train: Trained, store: str, tmp_path: Path
) -> None:
    here = {"MLFLOW_TFMON_DELIVERY_WAIT": "2", "HOME": str(tmp_path)}
    said = train((tmp_path / "runs").as_uri() if "folder" in uri else uri, **here)
    (waiting,) = find_waiting()
    assert waiting.records > 5
    lines = [line for line in said.splitlines() if "mlflow_tfmon:" in line and "cannot create a run" in line]
    assert len(lines) == 1 and "mlflow-tfmon sync" in lines[0], said
    command = [sys.executable, "-m", "mlflow_tfmon.cli", "sync", "--tracking-uri", store]
    give_up = time.monotonic() + 300
    while (delivered := subprocess.run(command, capture_output=True, text=True)).returncode:
        assert "another process is delivering it" in delivered.stdout  # the training's own, for a minute
        assert time.monotonic() < give_up
    (run,) = mlflow.MlflowClient(store).search_runs(["0"])
    assert run.info.status == "FINISHED"
    assert mlflow_tfmon.load_run(run.info.run_id, store).steps.index.tolist() == list(range(1, 101))
