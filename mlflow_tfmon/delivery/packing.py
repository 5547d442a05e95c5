"""Packs: files that carry undelivered recordings to another machine, and the checks of one that comes from anywhere.

A pack is a compressed tar: first a list of its files with their sizes, then these files in that order. Nothing in it is
trusted: what is not as the list says is refused, and of a recording no journal is kept as it came. Its records are read
one by one and written to a journal of this machine, for the store that is configured here; so are its status and its
saved state. Of other files it may have those of the models that its records name.

A recording keeps its name, by which delivery knows on every machine what has arrived of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import os
import re
import shutil
import sqlite3
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePath
from typing import Any

from mlflow_tfmon import locks, trusted_paths
from mlflow_tfmon.delivery import saved_state, status
from mlflow_tfmon.delivery.sync import Waiting
from mlflow_tfmon.journal import life
from mlflow_tfmon.journal.homes import home_folder
from mlflow_tfmon.journal.journal import DATABASE, Journal, JournalReader, UnreadableError
from mlflow_tfmon.stream.records import ModelSaved, Record, RunStarted
from mlflow_tfmon.tracking.credentials import same
from mlflow_tfmon.uris import address

FORMAT = 1
LIST = "pack.json"
_OWN = (DATABASE, status.FILE, saved_state.FILE)
_FILE = re.compile(r"[0-9a-f]{32}(?:/[^/\\\x00-\x1f\x7f]{1,255}){1,16}")
_MOST_FILES = 100_000
_MOST_LIST = 32 * 2**20  # bytes
_AT_ONCE = 2**20  # bytes that are read at once: a header may say that it has gigabytes
_SPARE = 2**30  # bytes that stay free on the disk


class PackError(ValueError):
    """A file that is no pack, or a recording that cannot be packed or unpacked; the message says what to do."""


@dataclass(frozen=True)
class Unpacked:
    """A recording that was in a pack.

    Attributes:
        name: of its run, or of the recording if there is no run yet.
        records: how many it has.
        new: whether it was not here.
    """

    name: str
    records: int
    new: bool


def pack(recordings: Sequence[Waiting], file: Path) -> None:
    """Writes recordings to a file, which is there when all of it is; they stay where they are.

    Args:
        recordings: the recordings.
        file: where to.

    Raises:
        PackError: one of them cannot be packed now, or the file is there.
        OSError: the file cannot be written.
    """
    if os.path.lexists(file):
        raise PackError(f"{file} exists: give another name, or remove it")
    files = dict[str, Path]()
    with (
        _workplace(recordings[0].folder.parents[1], "packing") as staged,
        _draft(file) as draft,
        contextlib.ExitStack() as claims,
    ):
        for one in recordings:
            claims.enter_context(_claimed(one))
            folder = staged / one.folder.name
            folder.mkdir(mode=0o700)
            models = _write_anew(one.folder, folder, lambda started: started)[1]
            for path in (folder / own for own in _OWN):
                if path.is_file():
                    files[f"{folder.name}/{path.name}"] = path
            for path in (path for model in models for path in _files_of(one.folder, model)):
                files[f"{folder.name}/{path.relative_to(one.folder).as_posix()}"] = path
        with tarfile.open(draft, "w:gz", format=tarfile.PAX_FORMAT) as tar:
            listed = {name: os.stat(at).st_size for name, at in files.items()}
            text = json.dumps({"format": FORMAT, "files": list(listed.items())}).encode()
            tar.addfile(_member(LIST, len(text)), BytesIO(text))
            for name, at in files.items():
                with open(trusted_paths.opened(at, os.O_RDONLY), "rb") as content:
                    tar.addfile(_member(name, listed[name]), content)


def unpack(file: Path, tracking_uri: str | None = None) -> list[Unpacked]:
    """Puts the recordings of a pack among those that wait on this machine: all of them, or none.

    Args:
        file: the pack.
        tracking_uri: the store that they are for. Default: MLflow's own setting, which must be the one they name.

    Returns:
        Them; of one that is here already, nothing is changed.

    Raises:
        PackError: it is no pack, or it has what no pack has, or is for another store.
        OSError: it cannot be read, or the recordings cannot be written.
    """
    if not stat.S_ISREG(os.stat(file).st_mode):
        raise PackError(f"{file} is not a regular file")
    home = home_folder()
    trusted_paths.make_folder(home)
    trusted_paths.check_home(home)
    with _workplace(home, "unpacking") as place:
        received, made = place / "received" / "recordings", place / "made" / "recordings"
        for folder in (received, made, home / "recordings"):
            trusted_paths.make_folder(folder)
        try:
            _receive(file, received)
        except PackError:
            raise
        except (
            EOFError,
            tarfile.TarError,
            gzip.BadGzipFile,
            zlib.error,
            RecursionError,
            ArithmeticError,
            ValueError,
        ) as error:
            raise PackError(f"{file} is no pack of mlflow-tfmon, or not all of one ({error})") from error
        found = [_unpack(one, made / one.name, home, tracking_uri) for one in sorted(received.iterdir())]
        for one, folder in zip(found, sorted(made.iterdir()), strict=True):
            if one.new:
                folder.rename(home / "recordings" / folder.name)
    return found


@contextlib.contextmanager
def _claimed(one: Waiting) -> Iterator[None]:
    """Keeps others from delivering a recording, and so from changing it."""
    if not life.claim(one.folder):
        raise PackError(f"{one.name} is being delivered: wait until that is over")
    try:
        yield
    finally:
        life.disclaim(one.folder)


@contextlib.contextmanager
def _workplace(home: Path, name: str) -> Iterator[Path]:
    """A folder on the disk of the recordings, for one process at a time; what one that was killed left there goes."""
    place, lock = home / name, home / f"{name}.lock"
    if not locks.hold(lock):
        raise PackError(f"another process is {name} in {home}: wait until that is over")
    try:
        shutil.rmtree(place, ignore_errors=True)
        trusted_paths.own_folder(place)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        locks.release(lock, delete=True)


@contextlib.contextmanager
def _draft(file: Path) -> Iterator[Path]:
    """A file beside another, in whose place it is put when it is complete."""
    handle, name = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
    os.close(handle)
    try:
        yield Path(name)
        os.replace(name, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    return member


def _files_of(folder: Path, model: str) -> list[Path]:
    """The files of a model, and the mark that it was replaced, where they are."""
    if not PurePath(model).parts:  # the recording itself
        return []
    files = [path for path in sorted((folder / model).rglob("*")) if path.is_file()]
    gone = folder / f"{model}.gone"
    return [*files, gone] if gone.is_file() else files


def _write_anew(
    source: Path, target: Path, change: Callable[[RunStarted], RunStarted]
) -> tuple[RunStarted, list[str], int]:
    """Writes a recording's journal, status and saved state to another folder, record by record.

    Args:
        source: the recording.
        target: an empty folder.
        change: what becomes of its first record.

    Returns:
        Its first record, the paths of its models, and the number of its records.

    Raises:
        PackError: a part of it cannot be read.
    """
    reader, journal = JournalReader(source), Journal(target)
    begun: list[RunStarted] = []
    models: list[str] = []
    count = 0

    def rows() -> Iterator[tuple[int, Record]]:
        nonlocal count
        last = 0
        while batch := reader.read(last):
            for last, record in batch:
                if isinstance(record, UnreadableError):
                    raise PackError(str(record))
                if (last == 1) != isinstance(record, RunStarted):
                    raise PackError(f"recording {source.name} does not say whose it is")
                if isinstance(record, RunStarted):
                    record = change(record)
                    begun.append(record)
                elif isinstance(record, ModelSaved):
                    models.append(record.path)
                count += 1
                yield last, record
        if reader.error:
            raise PackError(reader.error)

    try:
        journal.restore(rows())
    finally:
        reader.close()
        journal.close()
    if not begun:
        raise PackError(f"recording {source.name} has no records")
    known = status.read_status(source)
    if (source / status.FILE).exists() and not known.complete:
        status.write_status(target, dataclasses.replace(known, error=None))
    moment = saved_state.load_moment(source, lambda: target / "telemetry")
    if moment is not None:
        saved_state.save_moment(target, dataclasses.replace(moment, started=change(moment.started)))
        shutil.rmtree(target / "telemetry", ignore_errors=True)
    return begun[0], models, count


# -- what comes from anywhere ------------------------------------------------------------------------------------------
class _InPieces:
    """A file of which nobody reads much at once."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _AT_ONCE:
            raise PackError("it has a header that no pack has")
        found: bytes = self._file.read(size)
        return found

    def tell(self) -> int:
        return int(self._file.tell())

    def seek(self, position: int) -> int:
        return int(self._file.seek(position))


def _receive(file: Path, where: Path) -> None:
    """Writes a pack's files to a folder, if it has those that its list names and no other."""
    with gzip.open(file) as content, tarfile.open(fileobj=_InPieces(content), mode="r:") as tar:  # type: ignore[call-overload]
        first = _next(tar, LIST)
        if first.size > _MOST_LIST:
            raise PackError(f"{file}: its list is too long")
        text = b"".join(_pieces(tar, first))
        listed = _listed(file, json.loads(text))
        needed, free = sum(listed.values()), shutil.disk_usage(where).free - _SPARE
        if needed > free:
            raise PackError(
                f"{file} needs {needed / 1e9:.1f} GB on the disk of {where.parents[2]}, which has "
                f"{max(0, free) / 1e9:.1f} GB to spare"
            )
        for path, size in listed.items():
            member = _next(tar, path)
            if member.size != size:
                raise PackError(f"{file}: {path} has another size than its list says")
            trusted_paths.make_folder((where / path).parent)
            handle = os.open(where / path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with open(handle, "wb") as out:
                out.writelines(_pieces(tar, member))
        if tar.next() is not None:
            raise PackError(f"{file} has files that are not in its list")


def _next(tar: tarfile.TarFile, name: str) -> tarfile.TarInfo:
    member = tar.next()
    if member is None:
        raise PackError(f"{name} is missing in the pack: copy the file again")
    if member.name != name or member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        kind = "" if member.isreg() and not member.issparse() else ", which is no plain file"
        raise PackError(
            f"the pack has {member.name[:200]!r}{kind}, where {name!r} is due: it is not unpacked"
        )
    return member


def _pieces(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[bytes]:
    content = tar.extractfile(member)
    left = member.size
    while left and content is not None:
        piece = content.read(min(left, _AT_ONCE // 2))
        if not piece:
            raise EOFError(f"{member.name} is cut off")
        left -= len(piece)
        yield piece


def _listed(file: Path, found: object) -> dict[str, int]:
    """The files that a pack's list names, with their sizes."""
    made = found.get("format") if isinstance(found, dict) else None
    if type(made) is int and made > FORMAT:
        raise PackError(f"{file} was packed by a newer version: upgrade mlflow_tfmon")
    files = found.get("files") if isinstance(found, dict) and made == FORMAT else None
    if not isinstance(files, list) or len(files) > _MOST_FILES:
        raise PackError(f"{file} is no pack of mlflow-tfmon")
    listed: dict[str, int] = {}
    for one in files:
        path, size = one if isinstance(one, list) and len(one) == 2 else ("", 0)
        good = isinstance(path, str) and _FILE.fullmatch(path) and not {".", ".."} & set(path.split("/"))
        good = good and not path.split("/")[1].startswith(f"{DATABASE}-")  # SQLite would do what these say
        if not good or type(size) is not int or size < 0 or path in listed:
            raise PackError(f"{file}: its list names {str(path)[:200]!r}, which no recording has")
        listed[path] = size
    return listed


def _unpack(received: Path, folder: Path, home: Path, tracking_uri: str | None) -> Unpacked:
    """Makes a recording of this machine of one that was received."""
    folder.mkdir(mode=0o700)
    try:
        started, models, count = _write_anew(received, folder, lambda one: _for_here(one, tracking_uri))
    except PackError:
        raise
    except (OSError, ValueError, sqlite3.Error) as error:
        raise PackError(f"recording {received.name} cannot be read: {error}") from error
    allowed = {path for model in models for path in _files_of(received, model)}
    for path in sorted(path for path in received.rglob("*") if path.is_file()):
        relative = path.relative_to(received)
        if str(relative) in _OWN or str(relative).startswith(f"{DATABASE}-"):  # SQLite's, of just now
            continue
        if path not in allowed or (folder / relative).exists():
            raise PackError(f"recording {received.name} has {str(relative)!r}, which no record of it names")
        trusted_paths.make_folder((folder / relative).parent)
        path.rename(folder / relative)
    new = not os.path.lexists(home / "recordings" / folder.name)
    return Unpacked(started.run_id or folder.name, count, new)


def _for_here(started: RunStarted, tracking_uri: str | None) -> RunStarted:
    """The first record for the store that is configured here; what it names is looked at, and not called."""
    import mlflow

    name, theirs = started.run_id or started.run_name or "a run", str(started.tracking_uri)
    mine = address(tracking_uri or mlflow.get_tracking_uri())
    if tracking_uri is None and not same(theirs, mine):
        raise PackError(
            f"{name} is for the store {theirs}, but MLFLOW_TRACKING_URI is {mine}: set it to that store, or pass "
            "--tracking-uri"
        )
    registry = mine
    if started.registry_uri not in ("", started.tracking_uri):
        registry = address(mlflow.get_registry_uri())
        if not same(str(started.registry_uri), registry):
            raise PackError(
                f"{name} is for the registry {started.registry_uri}, but MLFLOW_REGISTRY_URI is {registry}: set it to "
                "that registry"
            )
    return dataclasses.replace(started, tracking_uri=mine, registry_uri=registry, sinks="")
