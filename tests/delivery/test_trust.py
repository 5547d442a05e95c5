"""Tests of trust: data that others could have written are not read; a credential goes only to its own store."""

from __future__ import annotations

import http.server
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from recordings import BEGUN, blocks, layout, started, values, write

from mlflow_tfmon import trusted_paths
from mlflow_tfmon.cli import main
from mlflow_tfmon.delivery.backlog import left_behind
from mlflow_tfmon.delivery.deliverer import Deliverer
from mlflow_tfmon.delivery.status import put_away
from mlflow_tfmon.delivery.sync import deliver, find_waiting
from mlflow_tfmon.journal.journal import DATABASE, Journal, JournalReader
from mlflow_tfmon.journal.life import claim_run, disclaim_run, is_written
from mlflow_tfmon.stream.records import DatasetUsed, Facts, Problems, RunEnded

pytestmark = pytest.mark.skipif(os.name != "posix", reason="modes and owners are POSIX's")
ENDED = RunEnded(BEGUN + 10, "FINISHED", True)


@pytest.fixture
def folder(store: str, home: Path) -> Path:
    """A recording that could be delivered."""
    return write(home, started(store), layout(), *blocks(values(10)), ENDED)


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a file, or a folder, another user's."""
    if os.geteuid() == 0:
        os.chown(path, 4711, 4711, follow_symlinks=False)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 4711)


def refused(folder: Path, capsys: pytest.CaptureFixture[str], remedy: str) -> None:
    """Sees that a recording is read nowhere, is kept, and what is said of it."""
    (waiting,) = find_waiting()
    assert waiting.records == 0 and not waiting.store and remedy in str(waiting.error)
    assert deliver(waiting) == waiting.error
    assert not JournalReader(folder).read(0) or not str(waiting.folder).startswith(str(folder))
    one = Deliverer(folder)
    one.advance(trainer_gone=True)
    assert not one.claimed and not one.done and remedy in str(one.status.error)
    capsys.readouterr()
    assert main(["sync"]) == 1
    out, _ = capsys.readouterr()
    (line,) = [line for line in out.splitlines() if "not delivered: " in line]
    assert remedy in line
    assert left_behind() == 1 and folder.exists()


@pytest.mark.parametrize("level", ["home", "recordings", "recording"])
@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_folder_that_others_can_write_is_not_read(
    folder: Path, capsys: pytest.CaptureFixture[str], level: str, mode: int
) -> None:
    where = {"home": folder.parent.parent, "recordings": folder.parent, "recording": folder}[level]
    where.chmod(mode)
    refused(folder, capsys, f"chmod go-w '{where}'")
    where.chmod(0o700)
    assert main(["sync"]) == 0 and not folder.exists()


@pytest.mark.parametrize("level", ["home", "recordings", "recording", DATABASE, "status.json"])
def test_what_is_somebody_elses_is_not_read(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    (folder / "status.json").write_text("{}")
    where = {"home": folder.parent.parent, "recordings": folder.parent, "recording": folder}
    give_away(where.get(level, folder / level), monkeypatch)
    refused(folder, capsys, "belongs to user")


@pytest.mark.parametrize("name", ["lock", "trainer", "status.json", "earlier.json", DATABASE])
@pytest.mark.parametrize("kind", ["fifo", "link", "device"])
def test_a_file_of_another_kind_is_neither_waited_for_nor_followed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    (folder / name).unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(folder / name)
    elif kind == "link":
        (tmp_path / "elsewhere").write_text("PRECIOUS")
        (folder / name).symlink_to(tmp_path / "elsewhere")
    else:
        try:
            os.mknod(folder / name, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only the superuser makes devices")
    refused(folder, capsys, "remove it")
    assert not is_written(folder)
    with pytest.raises(trusted_paths.NotOursError):
        trusted_paths.write_text(folder / name, "x")
    assert kind != "link" or (tmp_path / "elsewhere").read_text() == "PRECIOUS"


def test_a_file_that_everybody_can_write_is_not_read(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / DATABASE).chmod(0o666)
    refused(folder, capsys, "chmod go-w")


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077, 0o777])
def test_what_is_made_is_this_users_alone_whatever_the_umask(store: str, home: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        journal = Journal.create(home / "deep" / "home")
        journal.append([started(store), layout(), *blocks(values(10))])
        one = Deliverer(journal.folder)
        one.advance()
        assert one.status.delivered
        for where, folders, names in os.walk(home):
            for path in [Path(where), *(Path(where, name) for name in (*folders, *names))]:
                wanted = 0o700 if path.is_dir() else 0o600
                assert stat.S_IMODE(path.stat().st_mode) == wanted, path
    finally:
        os.umask(before)
        one.close()
        journal.close()


def test_a_home_that_others_can_write_is_not_recorded_to(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    home.mkdir()
    home.chmod(0o777)
    journal = Journal.create()
    journal.close()
    assert home not in journal.folder.parents and not (home / "recordings").exists()


@pytest.mark.parametrize("planted", ["link", "folder"])
def test_what_others_have_put_into_a_home_that_is_a_folder_of_all_is_not_used(
    planted: str, store: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with MLFLOW_TFMON_HOME=/tmp: locks of runs are looked for, and damaged recordings put aside, beside them."""
    folder = write(home, started(store), layout(), *blocks(values(10)), ENDED)
    home.chmod(0o1777)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "precious").write_text("precious")
    for name in ("runs", "damaged"):
        if planted == "link":
            (home / name).symlink_to(mine)
        else:
            (home / name).mkdir()
            (home / name / "theirs").write_text("theirs")
            (home / name).chmod(0o777)
    assert claim_run(folder, "a" * 32)  # nobody can tell who else does
    disclaim_run(folder, "a" * 32)
    put_away(folder, damaged=True)
    assert [one.name for one in mine.iterdir()] == ["precious"]
    for name in ("runs", "damaged") if planted == "folder" else ():
        assert [one.name for one in (home / name).iterdir()] == ["theirs"]
    assert folder.exists() and find_waiting() == []  # it has arrived, and is kept


def test_a_home_in_a_folder_of_all_is_this_users_own(home: Path) -> None:
    home.mkdir()
    home.chmod(0o1777)  # as /tmp
    journal = Journal.create()
    journal.close()
    assert home in journal.folder.parents
    trusted_paths.check_recording(journal.folder)


@pytest.fixture
def no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier test has set within this process."""
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
    monkeypatch.setattr("mlflow.tracking._model_registry.utils._registry_uri", None)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def server(no_setting: None) -> Iterator[tuple[str, list[str | None]]]:
    """An address, and the credentials that came there."""
    seen: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", seen
        running.shutdown()


CREDENTIALS = {
    "MLFLOW_TRACKING_TOKEN": "T0KEN", "MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": "T0KEN",
}  # fmt: skip


@pytest.mark.parametrize("which", ["tracking", "registry"])
@pytest.mark.parametrize("name", [*CREDENTIALS, None])
def test_a_credential_goes_only_to_the_store_that_it_is_for(
    store: str, home: Path, server: tuple[str, list[str | None]], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, name: str | None, which: str,
) -> None:  # fmt: skip
    uri, seen = server
    registry = {"registry_uri": uri} if which == "registry" else {}
    folder = write(home, started(store if registry else uri, None, **registry), layout(), *blocks(values(10)))
    if name is None:  # in the address
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ann:T0KEN@real.example.org")
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://real.example.org")
        for one in ("MLFLOW_TRACKING_USERNAME", name):
            monkeypatch.setenv(one, CREDENTIALS[one])
    assert main(["sync"]) == (0 if name is None and registry else 1)
    out, err = capsys.readouterr()
    assert not any(seen) and "T0KEN" not in out + err
    if name is not None:
        assert not seen and folder.exists()
        (line,) = [line for line in out.splitlines() if "not delivered: " in line]
        setting = "MLFLOW_REGISTRY_URI" if registry else "MLFLOW_TRACKING_URI"
        assert f"{setting}={uri}" in line and "https://real.example.org" in line


@pytest.mark.parametrize("said", ["option", "setting"])
def test_a_credential_goes_to_the_store_that_is_named_for_it(
    home: Path, server: tuple[str, list[str | None]], monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    uri, seen = server
    write(home, started(uri), layout(), *blocks(values(10)))
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "T0KEN")
    if said == "setting":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{uri}/")  # the same, written in another way
    assert main(["sync", *(["--tracking-uri", uri] if said == "option" else [])]) == 1
    assert "Bearer T0KEN" in seen


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://mlflow:S3CRET/QQ@127.0.0.1:1/db", "postgresql://mlflow:S3CRET QQ?@127.0.0.1:1/db",
        "http://S3CRETQQ@127.0.0.1:1", "http://127.0.0.1:1/?sig=S3CRETQQ", "mysql+pymysql://a:S3#CRET@QQ@127.0.0.1:1/db",
    ],
)  # fmt: skip
def test_no_secret_is_on_the_disk_or_shown(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tags = {"from": f"read from {uri}", "header": "Authorization: Bearer S3CRETQQ"}
    journal = Journal.create(home)
    journal.append(
        [
            started(uri, None, tags=tags),
            Facts(params={"data": uri}, tags=tags),
            DatasetUsed({"name": "x", "source": f'{{"url": "{uri}"}}'}, "train", {}),
            Problems(1, BEGUN, ({"kind": "x", "evidence": uri},)),
            RunEnded(BEGUN, "FAILED", True, f"OSError: {uri}"),
        ]
    )
    journal.close()
    assert main(["sync", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    if uri.startswith("http"):
        assert main(["sync"]) == 1
        out, err = map("".join, zip((out, err), capsys.readouterr(), strict=True))
    held = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
    assert b"127.0.0.1:1" in held and "127.0.0.1:1" in out
    for part in ("S3", "CRET", "QQ"):
        assert part.encode() not in held and part not in out + err
