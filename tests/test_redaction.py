"""Tests of redaction: secrets in addresses and texts are never written down; the rest stays readable."""

from __future__ import annotations

import ast
import base64
import json
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

import mlflow_tfmon
from mlflow_tfmon.errors import logger
from mlflow_tfmon.tables import echo, table
from mlflow_tfmon.uris import address, visible, without_secrets

# Letters of no other part, so that a piece of it is found wherever it is; and what has a meaning in addresses.
_LETTERS = st.text("QJZ", min_size=3, max_size=6)
_SEPARATORS = st.sampled_from(["/", "#", "?", "@", ":", "&", "=", "%40", "+", "!", "'", ";", "$", "~", "."])
SECRETS = st.lists(st.tuples(_LETTERS, _SEPARATORS), max_size=3).flatmap(
    lambda parts: _LETTERS.map(lambda last: "".join(a + b for a, b in parts) + last)
)
PLAIN = st.text("QJZqjz0123456789-_.~", min_size=4, max_size=12).filter(lambda text: set(text) & set("QJZ"))
HOSTS = st.sampled_from(["example.org", "127.0.0.1", "db", "[::1]"])
PORTS = st.sampled_from(["", ":5000"])
DATABASES = st.sampled_from(
    ["postgresql", "postgresql+psycopg2", "mysql+pymysql", "mssql+pyodbc", "oracle", "redis", "amqp"]
)
SERVERS = st.sampled_from(["http", "https", "ftp", "git+https"])
AROUND = st.sampled_from(
    [("", ""), ("see ", " and more"), ("'", "', 'more'"), ('{"url": "', '"}'), ("(", ")"), ("a\n", "\nb")]
)


def holds(text: str, secret: str) -> bool:
    """Whether a text has a piece of a secret."""
    return any(letter in text for letter in secret if letter in "QJZ")


@given(DATABASES | SERVERS, st.sampled_from(["ann", "svc-mlflow"]), SECRETS, HOSTS, PORTS, AROUND)
@example("postgresql", "mlflow", "QJZ/ZZZ", "127.0.0.1", ":1", ("", ""))
@example("https", "ann", "QJZ#ZZZ@JJJ?QQQ", "example.org", "", ("see ", " and more"))
def test_the_password_of_an_address(scheme, user, secret, host, port, around) -> None:
    before, after = around
    said = without_secrets(f"{before}{scheme}://{user}:{secret}@{host}{port}/mlflow?x=1{after}")
    assert not holds(said, secret)
    assert said == f"{before}{scheme}://{host}{port}/mlflow?x=1{after}"


@given(DATABASES, SECRETS, st.sampled_from([" ", "\t", "  "]), SECRETS, HOSTS)
def test_a_password_with_white_space_in_it(scheme, one, space, other, host) -> None:
    uri = f"{scheme}://ann:{one}{space}{other}@{host}/mlflow"
    assert address(uri) == f"{scheme}://{host}/mlflow"
    assume("@" not in one)
    assert not holds(without_secrets(f"it is at {uri} or so"), one + other)


@given(SERVERS | DATABASES, PLAIN, HOSTS, PORTS, AROUND)
def test_a_user_name_may_be_a_token(scheme, token, host, port, around) -> None:
    before, after = around
    said = without_secrets(f"{before}{scheme}://{token}@{host}{port}/mlflow{after}")
    assert said == f"{before}{scheme}://{host}{port}/mlflow{after}"


@given(
    st.sampled_from(
        [
            "sig", "X-Amz-Signature", "X-Amz-Credential", "X-Amz-Security-Token", "X-Goog-Signature", "auth", "code",
            "token", "access_token", "key", "api_key", "AWSAccessKeyId", "password", "client_secret", "Signature",
        ]
    ),
    SECRETS,
    st.sampled_from("?&;#"),
    AROUND,
)  # fmt: skip
def test_what_a_query_holds(name, secret, mark, around) -> None:
    assume("&" not in secret)
    before, after = around
    said = without_secrets(
        f"{before}https://example.org/hook?a=1{mark.replace('?', '&')}{name}={secret}&b=2{after}"
    )
    assert not holds(said, secret)
    assert said.startswith(f"{before}https://example.org/hook?a=1") and said.endswith(
        f"{name}=***&b=2{after}"
    )


@given(PLAIN, PLAIN, AROUND)
def test_headers_names_and_keys(one, other, around) -> None:
    before, after = around
    pair = base64.b64encode(f"{one}:{other}".encode()).decode()
    texts = [
        (f"Authorization: Bearer {one}", "Authorization: Bearer ***"),
        (f"Authorization: Basic {pair}", "Authorization: Basic ***"),
        (f"authorization={one}", "authorization=***"),
        (f"Bearer {one}", "Bearer ***"),
        (f"Basic {pair}", "Basic ***"),
        (f"password={one}", "password=***"),
        (f"aws_secret_access_key = {one}", "aws_secret_access_key = ***"),
        (f"MLFLOW_TRACKING_TOKEN={one}", "MLFLOW_TRACKING_TOKEN=***"),
        (f"AccountKey={one}", "AccountKey=***"),
        (f"--password {one}", "--password ***"),
        ("AKIAIOSFODNN7EXAMPLE", "***"),
    ]
    for text, wanted in texts:
        said = without_secrets(f"{before if before != '(' else ''}{text}{after}")
        assert not holds(said.replace(after, ""), one) and pair not in said and "AKIA" not in said
        assert wanted in said or "***" in said
    for text in (json.dumps({"api_key": one, "b": [1]}), str({"password": one, "b": [1]})):
        assert one not in without_secrets(text) and "[1]" in without_secrets(text)


def test_what_the_environment_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "dapi0123456789")
    assert without_secrets("the server does not know dapi0123456789.") == "the server does not know ***."


@pytest.mark.parametrize(
    "text",
    [
        "Invalid value 3 for parameter 'key' supplied: key='loss'",
        "unknown token: 'hello' at position 5",
        "input_signature=[TensorSpec(shape=(None, 4), dtype=tf.float32)]",
        "a basic functionality of the bears",
        "num_tokens=512, status_code=200, monkey: 3",
        "git+https://github.com/someone/package@v1.2",
        "http://localhost:5000/#/experiments/1/runs/ab@c?workflowType=machine_learning",
        "http://localhost:5000/#/experiments/1/runs?viewStateShareKey=tfmon&compareRunsMode=CHART",
        "http://[::1]:5000/a@b",
        "sqlite:////home/ann@work/mlflow.db",
        "sqlite:///C:/Users/ann@work/mlflow.db",
        "databricks://profile and models:/name@best",
        "ann@example.org wrote: https://example.org/x",
        "no answer from http://127.0.0.1:5000: Read timed out.",
        "OOM when allocating tensor with shape[64,3] and type float on /job:localhost/replica:0/device:GPU:0",
        "ValueError: Shapes (None, 3) and (None, 10) are incompatible",
        "10.0.0.1:5000, user:group, a/b:c@d",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert without_secrets(text) == text


@given(st.text(max_size=60))
def test_any_text_is_taken_and_what_is_clean_stays_clean(text: str) -> None:
    said = without_secrets(text)
    assert without_secrets(said) == said
    assert not any(
        (ord(one) < 32 and one not in "\n\t") or one in "\x7f\x9b\u202e\u2066\ud800" for one in visible(text)
    )


@given(DATABASES, SECRETS, HOSTS, PORTS)
def test_an_address_without_its_password_is_of_the_same_database(scheme, secret, host, port) -> None:
    assume("@" not in secret)
    full = make_url(f"{scheme}://ann:{secret}@{host}{port}/mlflow")
    bare = make_url(address(f"{scheme}://ann:{secret}@{host}{port}/mlflow"))
    assert full.password and bare.username is None and bare.password is None
    assert (bare.host, bare.port, bare.database) == (full.host, full.port, full.database)


def test_what_is_logged_raised_and_printed(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    logger.warning("mlflow_tfmon: %s is away, %d", "https://ann:QJZ@example.org/\x1b[2J", 3)
    assert caplog.messages == ["mlflow_tfmon: https://example.org/\\x1b[2J is away, 3"]
    assert "QJZ" not in str(mlflow_tfmon.SettingError("run_id: no such run in postgresql://a:QJZ/Z@db/x"))
    echo(table([("RUN", "STORE"), ("a\x1b]0;owned\x07\nb", "http://ann:QJZ@example.org")]))
    out, _ = capsys.readouterr()
    assert out.splitlines()[1:] == ["a\\x1b]0;owned\\x07\\nb  http://example.org"]


def test_commands_print_in_no_other_way() -> None:
    for path in Path(mlflow_tfmon.__file__).parent.joinpath("commands").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            assert not (isinstance(node, ast.Attribute) and node.attr in ("echo", "secho")), path
            assert not (isinstance(node, ast.Name) and node.id == "print"), path


def test_control_characters_are_seen_and_do_nothing() -> None:
    assert visible("a\x1b[2J\r\x07\x9b\u202eb\n\tc\u2028\ud800 ü 日本 👩\u200d🔬") == (
        "a\\x1b[2J\\r\\x07\\x9b\\u202eb\n\tc\\u2028\\ud800 ü 日本 👩\u200d🔬"
    )


def test_the_command_line_is_told_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow_tfmon.facts.environment import command

    given = ["python", "train.py", "--lr", "5", "--api-key", "abcdef123456", "--name", "two words"]
    monkeypatch.setattr("sys.orig_argv", given)
    assert command() == "train.py --lr 5 --api-key *** --name 'two words'"
