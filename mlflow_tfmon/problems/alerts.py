"""Notification of new problems, and of the end of a training: a function of the user, and an HTTP endpoint."""

from __future__ import annotations

import atexit
import base64
import dataclasses
import html
import json
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from mlflow_tfmon.detectors import Problem
from mlflow_tfmon.errors import say_once
from mlflow_tfmon.settings import Settings
from mlflow_tfmon.stream.records import RunEnded, RunStarted
from mlflow_tfmon.tracking.links import where
from mlflow_tfmon.uris import apart

_TIMEOUT = 10.0  # s for an answer
_PAUSES = (0.0, 2.0, 8.0)  # s before each try
_DISCORD = 2000  # characters of a message
_TEAMS = (".webhook.office.com", ".logic.azure.com", ".api.powerplatform.com")
_SHORT_SECONDS = 60.0  # who starts a training that is shorter still looks on when it ends
_LONGEST = 45.0  # s that the end of a script waits for an alert: for all tries that nobody answers


_posting: list[threading.Thread] = []


@atexit.register
def wait() -> None:
    """The last that is to be told is told as well; but who listens may answer a byte at a time, for ever."""
    until = time.monotonic() + _LONGEST
    for thread in _posting:
        thread.join(max(0.0, until - time.monotonic()))


def of(
    settings: Settings, run_id: str | None, run_name: str | None, link: str
) -> list[Callable[[Problem], None]]:
    """Returns the functions to call with each new problem; none of them blocks or raises.

    Args:
        settings: of the training.
        run_id: its run, or None if it is yet to be made.
        run_name: the run's name.
        link: where the run can be looked at.
    """
    found: list[Callable[[Problem], None]] = []
    if callable(settings.on_problem):
        found.append(_users_own(settings.on_problem))
    if settings.alert_url is not None:
        url = settings.alert_url

        def alert(problem: Problem) -> None:
            about = {"event": "problem", "run_id": run_id, "run_name": run_name, "link": link}
            text = f"{run_name or run_id}: {problem.severity}: {problem.line()}\n{link}"
            _tell(url, text, {**about, "problem": dataclasses.asdict(problem)})

        found.append(alert)
    return found


@dataclass(frozen=True)
class Ending:
    """How a training ended.

    Attributes:
        record: the record that says so.
        progress: how far it came, in words.
        died: whether its process was killed or crashed.
    """

    record: RunEnded
    progress: str
    died: bool


def of_end(url: str, started: RunStarted, run_id: str | None, ending: Ending) -> None:
    """Tells an address that a training has finished, has failed, was killed, or died; of a short one that it failed.

    Args:
        url: the address.
        started: the first record of the training's recording.
        run_id: its run.
        ending: how it ended.
    """
    seconds = ending.record.time - started.start_time
    event = "died" if ending.died else ending.record.status.lower()
    if event == "finished" and seconds < _SHORT_SECONDS:
        return
    link = where(started.tracking_uri, started.experiment_id, run_id)
    why = f": {ending.record.reason}" if ending.record.reason else ""
    text = (
        f"{started.run_name or run_id} {event} after {seconds / 60:.0f} min{why}\n{ending.progress}\n{link}"
    )
    about = {"event": event, "run_id": run_id, "run_name": started.run_name, "link": link, "seconds": seconds,
             "reason": ending.record.reason, "progress": ending.progress}  # fmt: skip
    _tell(url, text, about)


def _tell(url: str, text: str, about: dict[str, Any]) -> None:
    """Posts a text to a chat, and what it is about to anybody else."""
    body = message(url, text) or about
    thread = threading.Thread(target=post, args=(url, body), name="mlflow_tfmon-alert", daemon=True)
    thread.start()
    _posting.append(thread)


def message(url: str, text: str) -> dict[str, Any] | None:
    """A text as the chat expects it whose incoming webhook an address is; None of any other address.

    The formats are those of Slack's and Discord's webhooks, and of Microsoft Teams' (an adaptive card). A name such as
    `<!channel>` or `@everyone` is text there, and calls nobody.

    Args:
        url: the address.
        text: of which the last line is where to look.

    Example:
        >>> message("https://hooks.slack.com/services/T/B/x", "hello")
        {'text': 'hello'}
    """
    parts = urlsplit(apart(url)[0])
    host = (parts.hostname or "").lower()
    if host in ("hooks.slack.com", "hooks.slack-gov.com"):
        return {"text": html.escape(text, quote=False)}
    if host in ("discord.com", "discordapp.com") and parts.path.startswith("/api/webhooks/"):
        said, _, link = text.rpartition("\n")
        cut = text if len(text) <= _DISCORD else f"{said[: _DISCORD - len(link) - 2]}…\n{link}"
        return {"content": cut[:_DISCORD], "allowed_mentions": {"parse": []}}
    if host.endswith(_TEAMS):
        lines = [f"[{one}]({one})" if one.startswith("http") else one for one in text.split("\n")]
        body = [{"type": "TextBlock", "text": one, "wrap": True} for one in lines]
        card = {"type": "AdaptiveCard", "version": "1.4", "body": body}
        kind = "application/vnd.microsoft.card.adaptive"
        return {"type": "message", "attachments": [{"contentType": kind, "content": card}]}
    return None


def post(url: str, about: dict[str, Any]) -> bool:
    """Posts JSON in at most three attempts; returns whether it was accepted. Failures are logged once, without address.

    A user name and a password in the address are sent as the header that they stand for. Its path and its query may be
    secret as well.
    """
    import requests

    plain, user = apart(url)
    user, _, password = user.partition(":")
    pair = base64.b64encode(unquote_to_bytes(user) + b":" + unquote_to_bytes(password)).decode()

    def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Basic {pair}"
        return request

    body, host = json.dumps(_finite(about)).encode(), urlsplit(plain).netloc
    headers, auth = {"Content-Type": "application/json"}, sign if user or password else None
    reason = ""
    for pause in _PAUSES:
        time.sleep(pause)
        try:
            # What is answered beside the status is not read. Nor is it followed: most redirections would have the
            # alert lost (of a POST they make a GET), and any has it sent to an address that the user has not named.
            with requests.post(
                plain, body, headers=headers, auth=auth, timeout=_TIMEOUT, stream=True, allow_redirects=False
            ) as answer:
                status = answer.status_code
            if status < 300:
                return True
            reason = f"it answers {status}{', a redirect' if status < 400 else ''}"
        except Exception as error:  # whose text has the address
            reason = f"{type(error).__name__}{_cause(error)}"
    say_once(
        f"alert {host}",
        f"mlflow_tfmon: alert_url: {host} did not accept an alert ({reason}); check the address.",
    )
    return False


def _cause(error: BaseException) -> str:
    """What the operating system says of a failed call, which holds no address: `: Connection refused`."""
    found: BaseException | None = error
    for _ in range(8):  # requests has urllib3's, which has the socket's
        if found is None:
            break
        if isinstance(found, OSError) and found.errno and found.strerror:
            return f": {found.strerror}"
        reason = getattr(found, "reason", None)
        inner = [one for one in (reason, *found.args) if isinstance(one, BaseException)]
        found = inner[0] if inner else found.__cause__ or found.__context__
    return ""


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _users_own(function: Callable[[Problem], Any]) -> Callable[[Problem], None]:
    def call(problem: Problem) -> None:
        try:
            function(problem)
        except Exception as error:  # the user's error, reported as such
            say_once(
                f"on_problem {function!r}",
                f"mlflow_tfmon: the function given as on_problem failed ({type(error).__name__}: {error}); the "
                f"training "
                "goes on.",
            )

    return call
