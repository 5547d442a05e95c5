"""The two queues of calls, and the count of what they have brought to the store."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from mlflow.tracking import MlflowClient

from mlflow_tfmon.delivery.calls import AnyOrder, InOrder
from mlflow_tfmon.delivery.checkpointed import Asked, models_not_there
from mlflow_tfmon.delivery.existing import Earlier
from mlflow_tfmon.delivery.run_creation import made_run
from mlflow_tfmon.delivery.status import Ledger
from mlflow_tfmon.delivery.tally import MANIFEST, Sent, missing
from mlflow_tfmon.stream.records import RunEnded, RunStarted
from mlflow_tfmon.tags import DELIVERY_TAG, REFUSED_TAG
from mlflow_tfmon.tracking.store import AwayError, RefusedError, RunStore, open_store, store_errors

_TAG_LENGTH = 5000  # of the longest that every store takes


class Counting:
    """Pending calls: those for rows and facts, and those for files and what must follow them.

    Two queues, so that metrics, params, tags and the run's end state wait for no file.

    Attributes:
        muted: whether calls are skipped because an earlier delivery has made them.
        so_far: what has been handed over.
        lacks: what the store has lost of it, as far as counted, a line each.
        confirmed: whether all of the recording was counted in the store.

    Args:
        folder: of the recording.
        uris: tracking and registry URI, None for what the recording says.
        ledger: where to note what became of the calls.
        unread: records that could not be translated: number -> why.
    """

    def __init__(
        self, folder: Path, uris: tuple[str | None, str | None], ledger: Ledger, unread: Mapping[int, str]
    ) -> None:
        self.muted = False
        self.so_far = Sent()
        self.lacks: list[str] = []
        self.confirmed = False
        self._folder = folder
        self._uris = uris
        self._ledger = ledger
        self._unread = unread
        self._calls = InOrder(self._takes_tags)
        self._files = AnyOrder()
        self._client: MlflowClient | None = None
        self._run: RunStore | None = None
        self._earlier = Earlier()
        self._coming: set[str] = set()  # files that wait
        self._told: Mapping[str, str] = {}
        self._manifest = ""

    @property
    def empty(self) -> bool:
        """Whether no call waits."""
        return not self._calls and not self._files

    @property
    def sent(self) -> float:
        """When a call last succeeded (monotonic seconds), 0 if none did."""
        return max(self._calls.sent, self._files.sent)

    @property
    def left(self) -> dict[str, str]:
        """What is not yet in the store: name -> reason."""
        lacking = dict.fromkeys(self.lacks, "the store lacks it")
        unread = {f"record {number}": why for number, why in self._unread.items()}
        return {**unread, **self._calls.failed, **self._files.errors, **lacking}

    def send(self) -> None:
        """Makes the calls for rows and facts.

        Raises:
            AwayError: the store does not answer; the remaining calls stay pending.
        """
        self._calls.make()

    def send_files(self) -> None:
        """Makes the calls for files, and those that must follow them.

        Raises:
            AwayError: some failed, and still wait, as do those that follow on them.
        """
        try:
            self._files.make()
        except AwayError:
            self._tell_what_is_left()
            raise

    def _tell_what_is_left(self) -> None:
        """Records in the run what has not arrived, if its completion is waiting for it."""
        left = self.left
        if self._run is not None and left != self._told and self._files.has(MANIFEST):
            with contextlib.suppress(AwayError):
                self._run.tags({DELIVERY_TAG: "incomplete", REFUSED_TAG: self._refused(left)})
                self._told = left

    def _refused(self, left: Mapping[str, str]) -> str:
        """Readable description of what is not in the store, and why."""
        told = {**self._ledger.status.rejected, **self.so_far.changed, **left}
        return "; ".join(f"{name}: {why}" for name, why in told.items())[:_TAG_LENGTH]

    def _takes_tags(self) -> bool:
        """Whether the store accepts a tag: then it is up, whatever it answers to a call."""
        if self._run is None:
            return False
        try:
            return not self._run.tags({DELIVERY_TAG: "streaming"})
        except AwayError:
            return False

    def count(self) -> None:
        """Checks the store for everything sent that was not checked yet; `lacks` gets what is missing.

        Raises:
            AwayError: the store does not answer.
        """
        assert self._run is not None
        run, tally, refused = self._run, self.so_far.tally, self._ledger.status.rejected
        # If files were held up, more may have come since: then it is not complete after all.
        manifest = tally.manifest({**refused, **dict.fromkeys(self._coming, "")}, self._earlier)
        with store_errors():
            self.lacks = [
                *missing(run.client, run.run_id, manifest, self.so_far.uncounted, tally.sizes),
                *tally.not_there(run.client, run.run_id, refused),
                *models_not_there(run, self.so_far, self._ledger, self._folder),
            ]
        if not self.lacks:  # else they are looked for again
            self.so_far.uncounted &= self._coming
        self._manifest = manifest

    def _count(self, run: RunStore, ended: RunEnded | None) -> dict[str, str]:
        """Marks delivery as complete if the store holds everything sent, and records what it rejects."""
        self.count()
        if ended is not None and ended.set_status and not run.ended():
            self.lacks.append("end state: the run is still active")
        run.text(MANIFEST, self._manifest)
        whole = not self.left.keys() - {MANIFEST}
        state = "incomplete" if not whole else "streaming" if self._coming else self.so_far.tagged
        rejected = self._tell_refused(run) | run.tags({DELIVERY_TAG: state})
        self.confirmed = whole and ended is not None
        return rejected

    def _tell_refused(self, run: RunStore) -> dict[str, str]:
        """Has the run say what is not in the store, and nothing of it where all is."""
        left = self.left
        left.pop(MANIFEST, None)  # an earlier try of this very call
        if refused := self._refused(left):
            return run.tags({REFUSED_TAG: refused})
        run.untag(REFUSED_TAG)
        return {}

    def _ask(self, ask: Asked, name: str) -> None:
        """Makes a request for the run; MLflow's rejections are noted, not retried."""
        assert self._run is not None
        try:
            self._ledger.reject(ask(self._run) or {})
        except RefusedError as error:
            self._ledger.reject({name: str(error)})

    def _open(self, started: RunStarted) -> None:
        tracking_uri = self._uris[0] or started.tracking_uri
        registry_uri = self._uris[1] or started.registry_uri
        with store_errors():
            if self._client is None:
                self._client = open_store(tracking_uri, registry_uri)
            run_id = (
                started.run_id
                or self._ledger.status.run_id
                or made_run(self._client, started, self._folder.name)
            )
            if started.run_id is not None:  # else nothing is earlier
                self._earlier = Earlier.of(self._client, run_id, self._folder)
        self._run = RunStore(self._client, run_id)
        self._ledger.note(run_id=run_id)
