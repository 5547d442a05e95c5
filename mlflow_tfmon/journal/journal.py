"""The journal: a crash-safe log of one recording on the local disk.

One folder per recording, `<home>/recordings/<id>/`, with the records in `journal.sqlite`. Only the trainer writes
records and only delivery deletes them. SQLite in WAL mode keeps every committed record when either process is killed,
and lets delivery read while the trainer writes. The format: docs/journal.md.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sqlite3
import threading
import uuid
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mlflow_tfmon import trusted_paths
from mlflow_tfmon.errors import say_once
from mlflow_tfmon.journal import life
from mlflow_tfmon.journal.homes import home_folder, is_private, second_home
from mlflow_tfmon.stream.coding import decode, encode
from mlflow_tfmon.stream.records import (
    DatasetUsed,
    Facts,
    LeftOut,
    ModelSaved,
    Problems,
    Record,
    RunEnded,
    RunStarted,
)
from mlflow_tfmon.uris import address, without_secrets_in

FORMAT = 2  # 1 had all records, always
DATABASE = "journal.sqlite"
_READ_BYTES = 16 * 2**20
_WAL_BYTES = 16 * 2**20  # what is left of the WAL file when it has been larger
_NEAR_ROWS = 1000  # a journal may have gigabytes
_TEXTS = (RunStarted, Facts, DatasetUsed, ModelSaved, Problems, LeftOut, RunEnded)  # with texts of others
_LOCKED_S = 0.5  # a ring of a fast loop is full within seconds: who appends holds what does not get in
_TRIM_ROWS = 200  # deleted at once: the trainer waits for no more than that


class Journal:
    """Journal of one recording; any thread of the process that created it may append.

    Example:
        >>> journal = Journal.create()
        >>> journal.append([Flushed(time=time.time())])
        1
        >>> journal.close()
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._pid = os.getpid()
        life.hold(folder)
        path = self._path = folder / DATABASE
        # SQLite gives its side files the database's mode: made private here, all of them are.
        os.close(trusted_paths.opened(path, os.O_CREAT | os.O_EXCL | os.O_RDWR))
        self._connection = sqlite3.connect(
            path, timeout=_LOCKED_S, isolation_level=None, check_same_thread=False
        )
        self._connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # what is deleted makes the file smaller
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute(f"PRAGMA journal_size_limit={_WAL_BYTES}")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.execute("BEGIN")
        self._connection.execute(f"PRAGMA user_version={FORMAT}")
        self._connection.execute(
            "CREATE TABLE records (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, body TEXT NOT NULL, block BLOB)"
        )
        self._connection.execute("COMMIT")
        self._inode = os.stat(path).st_ino

    @classmethod
    def create(cls, home: Path | None = None) -> Journal:
        """Makes the journal of a new recording, readable by this user alone.

        Args:
            home: folder of all recordings; default `home_folder()`, or where that cannot be written `second_home()`.

        Raises:
            OSError, sqlite3.Error: the folder or the database cannot be written.
        """
        if home is not None:
            return cls._create(home)
        try:
            return cls._create(home_folder())
        except (OSError, sqlite3.Error) as error:
            home = second_home()
            trusted_paths.make_folder(home)
            if not is_private(home):
                raise
            journal = cls._create(home)
            say_once(
                f"home {home}",
                f"mlflow_tfmon: {home_folder()} cannot be used ({str(error).rstrip('.')}); recordings are kept in "
                f"{home}, which a reboot may empty; set MLFLOW_TFMON_HOME to another folder.",
            )
            return journal

    @classmethod
    def _create(cls, home: Path) -> Journal:
        trusted_paths.make_folder(home)
        trusted_paths.check_home(home)
        folder = home / "recordings" / uuid.uuid4().hex
        trusted_paths.make_folder(folder.parent)
        folder.mkdir(mode=0o700)
        folder.chmod(0o700)  # whatever the umask
        trusted_paths.check_recording(folder)  # there are file systems on which anybody can write anything
        return cls(folder)

    def append(self, records: Sequence[Record]) -> int:
        """Appends records, all or none.

        Returns:
            Number of the last record (the first record of a recording is 1).

        Raises:
            sqlite3.Error: they could not be written (disk full, journal closed); none of them is in the journal.
            OSError: the file is not there any more.
            RuntimeError: called in a forked child of the process that made the journal.
        """
        if os.getpid() != self._pid:
            raise RuntimeError("a recording is written by the process that started it, not by a forked child")
        rows = [_row(record) for record in records]
        with self._lock:
            if os.stat(self._path).st_ino != self._inode:  # else SQLite would write what nobody can find
                raise FileNotFoundError(f"{self._path} has been replaced by another file")
            cursor = self._connection.execute("BEGIN IMMEDIATE")
            try:
                cursor.executemany("INSERT INTO records (kind, body, block) VALUES (?, ?, ?)", rows)
                (last,) = cursor.execute("SELECT coalesce(max(seq), 0) FROM records").fetchone()
                cursor.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        return int(last)

    def restore(self, rows: Iterable[tuple[int, Record]]) -> None:
        """Writes all records of another journal, all or none, with the numbers that they have there.

        Raises:
            sqlite3.Error: they could not be written.
        """
        with self._lock:
            cursor = self._connection.execute("BEGIN IMMEDIATE")
            try:
                insert = "INSERT INTO records (seq, kind, body, block) VALUES (?, ?, ?, ?)"
                cursor.executemany(insert, ((number, *_row(record)) for number, record in rows))
                cursor.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def size(self) -> int:
        """Size of the records that were not deleted, in bytes."""
        with self._lock:
            pages, free, size = (
                int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])
                for name in ("page_count", "freelist_count", "page_size")
            )
        return (pages - free) * size

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        if os.getpid() == self._pid:
            with self._lock:
                self._connection.close()
            life.release(self.folder)


class _NewerError(ValueError):
    """The journal was written by a newer version."""


class UnreadableError(ValueError):
    """A record that this version cannot read."""


class JournalReader:
    """Reader of a journal, also while it is written; returns whatever is readable of a damaged one.

    Attributes:
        error: why less than everything could be read, in a line, or None.
        damaged: whether the file does not look like what was written.
        bytes: how much has been read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.error: str | None = None
        self.damaged = False
        self.bytes = 0
        self._connection: sqlite3.Connection | None = None

    def read(self, after: int, limit: int = 1000) -> list[tuple[int, Record | UnreadableError]]:
        """Returns the records after number `after`: at most `limit`, and a few megabytes, at a time.

        An unreadable record is replaced by its error.
        """
        found: list[tuple[int, Record | UnreadableError]] = []
        size = 0
        try:
            rows = self._execute(
                "SELECT seq, kind, body, block FROM records WHERE seq > ? ORDER BY seq LIMIT ?",
                (after, limit),
            )
            for seq, kind, body, block in rows:
                found.append((seq, self._decoded(seq, kind, body, block)))
                size += sum(len(one) for one in (body, block) if isinstance(one, (str, bytes)))
                if size > _READ_BYTES:
                    break
            self.bytes += size
        except (sqlite3.Error, OSError) as error:
            passes = ("locked", "unable to open", "memory")
            self.damaged = isinstance(error, sqlite3.Error) and not any(word in str(error) for word in passes)
            self.error = f"journal {self.folder / DATABASE} cannot be read: {error}"
            self.close()  # the next look is at what is on the disk then
        except _NewerError as error:
            self.error = f"journal {self.folder / DATABASE} cannot be read: {error}"
        else:
            self.error, self.damaged = None, False
        return found

    def _decoded(self, seq: int, kind: str, body: str, block: bytes | None) -> Record | UnreadableError:
        try:
            return decode(kind, json.loads(body), block)
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError, zlib.error) as error:
            return UnreadableError(
                f"record {seq} of journal {self.folder / DATABASE} cannot be read by this version: {error!r}"
            )

    def last(self) -> int:
        """Number of the last record that is there, 0 if there is none."""
        try:
            for (last,) in self._execute("SELECT coalesce(max(seq), 0) FROM records", ()):
                return int(last)
        except (sqlite3.Error, OSError, ValueError):
            pass
        return 0

    def ends(self) -> int:
        """Number of the last record up to which all was to be delivered, 0 if there is none or it has been."""
        near = "SELECT seq, kind FROM records ORDER BY seq DESC LIMIT ?"
        query = f"SELECT coalesce(max(seq), 0) FROM ({near}) WHERE kind IN ('Flushed', 'RunEnded')"
        try:
            for (last,) in self._execute(query, (_NEAR_ROWS,)):
                return int(last)
        except (sqlite3.Error, OSError, ValueError):
            pass
        return 0

    def trim(self, last: int) -> None:
        """Deletes the records up to a number, but the first, which says whose they are, and that one: numbers go on.

        Raises:
            sqlite3.Error: not all could be deleted.
        """
        some = f"SELECT seq FROM records WHERE seq > 1 AND seq < ? ORDER BY seq LIMIT {_TRIM_ROWS}"
        while self._execute(f"DELETE FROM records WHERE seq IN ({some})", (last,)).rowcount > 0:
            pass
        self._execute("PRAGMA incremental_vacuum", ()).fetchall()

    def close(self) -> None:
        """Closes the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _execute(self, query: str, values: tuple[int, ...]) -> sqlite3.Cursor:
        if self._connection is None:
            trusted_paths.check_recording(self.folder)
            uri = (self.folder / DATABASE).as_uri() + "?mode=rw"  # never makes a file where there is none
            connection = sqlite3.connect(uri, uri=True, timeout=10.0, isolation_level=None)
            try:
                # What its schema says is not done: a view or a trigger could be anybody's program.
                connection.execute("PRAGMA trusted_schema=OFF")
                connection.execute("PRAGMA cell_size_check=ON")
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                if version > FORMAT:
                    raise _NewerError(f"format {version} is newer than {FORMAT}; upgrade mlflow_tfmon")
                others = "SELECT count(*) FROM sqlite_master WHERE type <> 'table' OR name <> 'records'"
                if connection.execute(others).fetchone()[0]:
                    raise sqlite3.DatabaseError("it contains more than the table of records")
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection.execute(query, values)


def _row(record: Record) -> tuple[str, str, bytes | None]:
    kind, body, block = coded(record)
    return kind, json.dumps(body, default=plain), block


def coded(record: Record) -> tuple[str, dict[str, Any], bytes | None]:
    """A record as it may be written down: with addresses that hold everywhere, and no secret in them."""
    if isinstance(record, RunStarted):
        record = dataclasses.replace(
            record,
            tracking_uri=address(record.tracking_uri),
            registry_uri=address(record.registry_uri),
        )
    kind, body, block = encode(record)
    if isinstance(record, _TEXTS):
        body = {name: without_secrets_in(value) for name, value in body.items()}
    return kind, body, block


def plain(value: object) -> object:
    """NumPy's scalars and anything else with `item()` as the Python value that JSON knows."""
    item = getattr(value, "item", None)
    return item() if callable(item) else str(value)
