"""A Secret says where a value is found, and never what it is."""

from __future__ import annotations

import copy
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from nemo_run.errors import ConfigError
from nemo_run.secret import Secret
from nemo_run.shell import is_name

VALUE = "hunter2"


def test_reads_the_environment_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = Secret("HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", VALUE)
    assert secret.resolve() == VALUE


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_reads_a_file_without_its_line_end(tmp_path: Path, end: str) -> None:
    (tmp_path / "token").write_text(f" {VALUE}\n{end}", newline="")
    assert Secret(file=tmp_path / "token").resolve() == f" {VALUE}" + ("\n" if end else "")


def test_reads_a_file_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".token").write_text(VALUE)
    assert Secret(file="~/.token").resolve() == VALUE


def test_reads_a_command() -> None:
    assert Secret(command=["echo", "a  b"]).resolve() == "a  b"
    assert Secret(command="echo 'a  b'").resolve() == "a  b"


@pytest.mark.parametrize(
    ("secret", "message"),
    [
        (Secret("NOT_SET_ANYWHERE"), "export NOT_SET_ANYWHERE="),
        (Secret(file="/not/there"), "'/not/there' cannot be read: No such file"),
        (Secret(command=["/not/there"]), "cannot be run"),
        (Secret(command=["sh", "-c", "exit 3"]), "exit code 3"),
    ],
)
def test_what_cannot_be_read_is_a_config_error(secret: Secret, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        secret.resolve()


def test_no_error_holds_the_value(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(VALUE.encode() + b"\xff")
    argv = [sys.executable, "-c", f"print('{VALUE[:3]}' + '{VALUE[3:]}'); exit(1)"]
    for secret in (Secret(file=tmp_path / "token"), Secret(command=argv)):
        with pytest.raises(ConfigError) as caught:
            secret.resolve()
        chain = [
            caught.value,
            caught.value.__cause__,
            "" if caught.value.__suppress_context__ else caught.value.__context__,
        ]
        assert VALUE not in repr(chain)


@pytest.mark.parametrize(
    "kwargs", [{}, {"variable": "A", "file": "b"}, {"variable": ""}, {"file": ""}, {"command": []}]
)
def test_there_is_exactly_one_source(kwargs: Any) -> None:
    with pytest.raises(ConfigError):
        Secret(**kwargs)


SECRETS = [
    Secret("HF_TOKEN"),
    Secret("odd name"),
    Secret(file="~/.token"),
    Secret(command=["pass", "show", "x"]),
]


@pytest.mark.parametrize("secret", SECRETS)
def test_its_name_fits_into_a_variables_name(secret: Secret) -> None:
    assert is_name(f"NEMORUN_SECRET_{secret.name}")
    assert secret.name == copy.deepcopy(secret).name


def test_names_tell_secrets_apart() -> None:
    assert len({secret.name for secret in SECRETS}) == len(SECRETS)
    assert Secret("HF_TOKEN").name == "HF_TOKEN"


def test_shows_where_and_not_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", VALUE)
    assert str(SECRETS[0]) == repr(SECRETS[0]) == f"{SECRETS[0]}" == "Secret('HF_TOKEN')"
    assert repr(SECRETS[3]) == "Secret(command=['pass', 'show', 'x'])"


@pytest.mark.parametrize("secret", SECRETS)
def test_is_a_value(secret: Secret) -> None:
    assert secret in {pickle.loads(pickle.dumps(secret))}
    assert Secret.from_source(json.loads(json.dumps(secret.source()))) == secret
    with pytest.raises(AttributeError):
        secret.file = "x"  # type: ignore[misc]
