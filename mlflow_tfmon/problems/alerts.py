"""Notification of new problems: a function of the user, and an HTTP endpoint."""

from __future__ import annotations

import atexit
import base64
import dataclasses
import json
import math
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from mlflow_tfmon.detectors import Problem
from mlflow_tfmon.errors import say_once
from mlflow_tfmon.settings import Settings
from mlflow_tfmon.uris import apart

_TIMEOUT = 10.0  # s for an answer
_PAUSES = (0.0, 2.0, 8.0)  # s before each try
_DISCORD = 2000  # characters of a message
_TEAMS = (".webhook.office.com", ".logic.azure.com", ".api.powerplatform.com")
_LONGEST = 45.0  # s that the end of a script waits for an alert: for all tries that nobody answers


_posting: list[threading.Thread] = []


@atexit.register
def _wait() -> None:
    """The last problem of a script is told as well; but who listens may answer a byte at a time, for ever."""
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
            about = {
                "run_id": run_id,
                "run_name": run_name,
                "link": link,
                "problem": dataclasses.asdict(problem),
            }
            text = f"{run_name or run_id}: {problem.severity}: {problem.line()}\n{link}"
            body = message(url, text) or about
            thread = threading.Thread(target=post, args=(url, body), name="mlflow_tfmon-alert", daemon=True)
            thread.start()
            _posting.append(thread)

        found.append(alert)
    return found


def message(url: str, text: str) -> dict[str, Any] | None:
    """A text as the chat expects it whose incoming webhook an address is; None of any other address.

    The formats are those of Slack's and Discord's webhooks, and of Microsoft Teams' (an adaptive card).

    Example:
        >>> message("https://hooks.slack.com/services/T/B/x", "hello")
        {'text': 'hello'}
    """
    parts = urlsplit(apart(url)[0])
    host = (parts.hostname or "").lower()
    if host in ("hooks.slack.com", "hooks.slack-gov.com"):
        return {"text": text}
    if host in ("discord.com", "discordapp.com") and parts.path.startswith("/api/webhooks/"):
        return {"content": text[:_DISCORD]}
    if host.endswith(_TEAMS):
        body = [{"type": "TextBlock", "text": text, "wrap": True}]
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
