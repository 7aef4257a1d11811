"""Who they are, and who we are: nobody is trusted unseen, and nobody is asked behind a person's back."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest
from programs import until, write
from sshds import Sshd

import nemo_run as run
from nemo_run.core.tunnel.asking import asking
from nemo_run.errors import AuthenticationError, HostKeyError


class Person:
    """Answers what they are asked, by the first of the patterns that the question matches."""

    def __init__(self, answers: dict[str, str | None]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, bool]] = []

    def __call__(self, prompt: str, *, secret: bool) -> str | None:
        self.asked.append((prompt, secret))
        return next(answer for pattern, answer in self.answers.items() if re.search(pattern, prompt))


def works(**fields: object) -> None:
    """A tunnel with these fields gets in."""
    tunnel = run.SSHTunnel(**fields)  # type: ignore[arg-type]
    try:
        assert tunnel.run(["echo", "in"]).text == "in\n"
    finally:
        tunnel.close()


def refused(kind: type[Exception], **fields: object) -> str:
    """What a tunnel that does not get in says."""
    with pytest.raises(kind) as caught:
        run.SSHTunnel(**fields).run(["true"])  # type: ignore[arg-type]
    assert caught.value.ran is False  # type: ignore[attr-defined]
    return str(caught.value)


# --- who they are ---------------------------------------------------------------------------------------


def test_an_unknown_machine_is_refused_with_what_adds_it(sshd: Sshd) -> None:
    sshd.known_hosts.unlink()
    said = refused(HostKeyError, **sshd.where)
    [scan] = re.findall(r"`(ssh-keyscan .*?)`", said)
    assert said.endswith(sshd.known_line.strip())
    subprocess.run(["sh", "-c", scan], check=True, capture_output=True)
    works(**sshd.where)


def test_the_line_of_the_message_is_enough(sshd: Sshd) -> None:
    sshd.known_hosts.write_text("")
    said = refused(HostKeyError, **sshd.where)
    sshd.known_hosts.write_text(said.partition("to that file: ")[2])
    works(**sshd.where)


def test_a_person_is_asked_about_an_unknown_machine_once(sshd: Sshd) -> None:
    sshd.known_hosts.unlink()
    fingerprint = subprocess.check_output(["ssh-keygen", "-lf", sshd.folder / "host_key"], text=True).split()[
        1
    ]
    with asking(no := Person({"": "no"})):
        refused(HostKeyError, **sshd.where)
    assert not sshd.known_hosts.exists()
    with asking(yes := Person({"": "yes"})):
        works(**sshd.where)
        works(**sshd.where)
    works(**sshd.where)
    assert [len(no.asked), len(yes.asked)] == [1, 1]
    assert fingerprint in yes.asked[0][0]
    assert sshd.known_hosts.read_text() == sshd.known_line


@pytest.mark.parametrize("strict", ["yes", "accept-new", "no"])
def test_configuration_can_only_make_it_stricter(sshd: Sshd, strict: str) -> None:
    sshd.known_hosts.unlink()
    sshd.ssh_config.write_text(f"StrictHostKeyChecking {strict}\n{sshd.ssh_config.read_text()}")
    refused(HostKeyError, **sshd.where)
    with asking(person := Person({"": "yes"})):
        if strict == "yes":
            refused(HostKeyError, **sshd.where)
        else:
            works(**sshd.where)
    assert len(person.asked) == (strict != "yes")


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_a_changed_key_is_refused_whatever_anybody_says(sshd: Sshd, kind: str) -> None:
    sshd.new_key(sshd.folder / "host_key", kind=kind)
    sshd.restart()
    with asking(person := Person({"": "yes"})):
        said = refused(HostKeyError, **sshd.where)
    assert "shows a key other than the one that is known" in said
    assert f"{sshd.known_hosts}, line 1" in said
    assert not person.asked
    [forget] = re.findall(r"`(ssh-keygen -R .*?)`", said)
    subprocess.run(["sh", "-c", forget], check=True, capture_output=True)
    assert "is not known" in refused(HostKeyError, **sshd.where)


def test_hashed_wildcard_and_other_lines_are_read_as_openssh_reads_them(sshd: Sshd) -> None:
    key = sshd.known_line.split(" ", 1)[1]
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", sshd.known_hosts], check=True, capture_output=True)
    assert sshd.known_hosts.read_text().startswith("|1|")
    works(**sshd.where)
    sshd.known_hosts.write_text(f"# comment\n\nother {key}not a line\n[127.*]:{sshd.port} {key}")
    works(**sshd.where)
    sshd.known_hosts.write_text(f"*,![127.0.0.1]:{sshd.port} {key}")
    assert "is not known" in refused(HostKeyError, **sshd.where)
    sshd.known_hosts.write_text(f"@revoked * {key}{sshd.known_line}")
    assert "revoked" in refused(HostKeyError, **sshd.where)


# --- who we are -----------------------------------------------------------------------------------------


def test_a_key_that_is_not_let_in_is_named(sshd: Sshd) -> None:
    other = sshd.new_key(sshd.folder / "other")
    said = refused(AuthenticationError, **{**sshd.where, "identity": str(other)})
    assert f"Tried: {other} (refused)" in said
    missing = refused(AuthenticationError, **{**sshd.where, "identity": "/no/such/key"})
    assert "/no/such/key (there is no such file)" in missing
    (sshd.folder / "text").write_text("no key")
    assert "cannot be read" in refused(
        AuthenticationError, **{**sshd.where, "identity": str(sshd.folder / "text")}
    )


def test_a_refusal_is_not_tried_again_at_once(sshd: Sshd) -> None:
    other = sshd.new_key(sshd.folder / "other")
    tunnel = run.SSHTunnel(**{**sshd.where, "identity": str(other)})
    for _ in range(5):
        with pytest.raises(AuthenticationError):
            tunnel.connect()
    until(lambda: "Connection closed by authenticating user" in sshd.log.read_text())
    assert sshd.log.read_text().count("Connection closed by authenticating user") == 1


@pytest.mark.parametrize("kind", ["rsa", "ecdsa", "ed25519"])
def test_keys_of_all_kinds_are_taken(sshd: Sshd, kind: str) -> None:
    sshd.new_key(sshd.identity, kind=kind)
    (sshd.folder / "authorized_keys").write_bytes((sshd.folder / "user_key.pub").read_bytes())
    works(**sshd.where)


def test_a_locked_key_is_unlocked_by_a_person_once(sshd: Sshd) -> None:
    sshd.new_key(sshd.identity, passphrase="a b")
    (sshd.folder / "authorized_keys").write_bytes((sshd.folder / "user_key.pub").read_bytes())
    assert f"ssh-add {sshd.identity}" in refused(AuthenticationError, **sshd.where)
    answers = iter(["wrong", "a b"])
    asked = []

    def person(prompt: str, *, secret: bool) -> str:
        asked.append((prompt, secret))
        return next(answers)

    where = {**sshd.where, "host": "localhost"}  # another login: the refusal of the first is still held
    sshd.known_hosts.write_text(sshd.known_line.replace(sshd.host, "*"))
    tunnel = run.SSHTunnel(**where)
    with asking(person):
        assert tunnel.run(["echo", "in"]).text == "in\n"
    assert asked == [(f"Passphrase of {sshd.identity}: ", True)] * 2
    sshd.cut()
    assert tunnel.run(["echo", "again"], retry=True).text == "again\n"
    tunnel.close()


@contextlib.contextmanager
def agent(sshd: Sshd, *keys: Path) -> Iterator[str]:
    """An agent that holds these keys."""
    path = str(sshd.folder / "agent")
    process = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    try:
        until(lambda: os.path.exists(path))
        env = {**os.environ, "SSH_AUTH_SOCK": path}
        subprocess.run(["ssh-add", "-q", *keys], env=env, check=True, stdin=subprocess.DEVNULL)
        yield path
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize("by", ["environment", "configuration"])
def test_the_keys_of_an_agent_are_tried(sshd: Sshd, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [sshd.new_key(sshd.folder / f"other{at}") for at in range(3)]
    with agent(sshd, *others, sshd.identity) as path:
        sshd.identity.unlink()
        if by == "environment":
            monkeypatch.setenv("SSH_AUTH_SOCK", path)
        else:
            sshd.ssh_config.write_text(f"IdentityAgent {path}\n{sshd.ssh_config.read_text()}")
        works(host=sshd.host, port=sshd.port, user=sshd.user)
        # The one that is named comes first, so that a server that counts does not lose patience.
        works(**sshd.where)
        assert "Postponed" not in sshd.log.read_text()


def test_an_agent_may_be_kept_out(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    with agent(sshd, sshd.identity) as path:
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        for setting in ("IdentityAgent none", "IdentitiesOnly yes"):
            sshd.ssh_config.write_text(f"{setting}\nUserKnownHostsFile {sshd.known_hosts}\n")
            user = "root" if setting.endswith("none") else sshd.user
            refused(
                AuthenticationError, host=sshd.host, port=sshd.port, user=user, identity=f"/no/{setting[8:9]}"
            )
    monkeypatch.setenv("SSH_AUTH_SOCK", "/no/agent")
    works(**sshd.where)


def test_on_a_terminal_a_person_is_asked(sshd: Sshd, tmp_path: Path) -> None:
    sshd.known_hosts.unlink()
    sshd.new_key(sshd.identity, passphrase="a b")
    (sshd.folder / "authorized_keys").write_bytes((sshd.folder / "user_key.pub").read_bytes())
    script = f"""
        import nemo_run as run
        from nemo_run.console import people
        with people():
            print(run.SSHTunnel(**{sshd.where!r}).run(["echo", "got in"]).text)
    """
    ours, theirs = os.openpty()
    said = b""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", write(tmp_path / "script.py", script)],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    ) as process:  # fmt: skip
        os.close(theirs)
        for question, answer in (("[yes/no] ", "yes\n"), ("user_key: ", "a b\n"), ("got in", "")):
            while question.encode() not in said:
                said += os.read(ours, 1000)
            os.write(ours, answer.encode())
        assert process.wait(60) == 0
    os.close(ours)
    assert b"a b" not in said


# --- passwords ------------------------------------------------------------------------------------------


class Interview(paramiko.ServerInterface):
    """A server that lets in who knows the password, or answers two questions."""

    def __init__(self, ways: str) -> None:
        self.ways = ways
        self.tries = 0

    def get_allowed_auths(self, username: str) -> str:
        return self.ways

    def check_auth_password(self, username: str, password: str) -> int:
        self.tries += 1
        return paramiko.AUTH_SUCCESSFUL if password == "pass word" else paramiko.AUTH_FAILED

    def check_auth_interactive(self, username: str, submethods: str) -> paramiko.InteractiveQuery:
        return paramiko.InteractiveQuery("Two factors", "", ("Password: ", False), ("Code: ", True))

    def check_auth_interactive_response(self, responses: list[str]) -> int:
        self.tries += 1
        return paramiko.AUTH_SUCCESSFUL if responses == ["pass word", "123"] else paramiko.AUTH_FAILED


@contextlib.contextmanager
def interview(sshd: Sshd, ways: str) -> Iterator[tuple[dict[str, object], Interview]]:
    """A paramiko server, for without PAM the real one asks no questions; where it is, and what it saw."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        key = paramiko.Ed25519Key.from_private_key_file(str(sshd.folder / "host_key"))
        sshd.known_hosts.write_text(f"[127.0.0.1]:{port} {key.get_name()} {key.get_base64()}\n")
        server, served = Interview(ways), []

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    transport = paramiko.Transport(listening.accept()[0])
                    transport.add_server_key(key)
                    served.append(transport)
                    with contextlib.suppress(paramiko.SSHException, EOFError):
                        transport.start_server(server=server)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield {"host": "127.0.0.1", "port": port, "user": "somebody"}, server
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
            for transport in served:
                transport.close()
                transport.join()


def test_a_password_is_asked_of_a_person_and_remembered(sshd: Sshd) -> None:
    with interview(sshd, "password") as (where, server):
        tunnel = run.SSHTunnel(**where)  # type: ignore[arg-type]
        answers = iter(["mistyped", "pass word"])
        with asking(lambda prompt, *, secret: next(answers) if secret else None):
            tunnel.connect()
        tunnel.close()
        tunnel.connect()
        tunnel.close()
        assert server.tries == 3


def test_questions_of_the_server_are_passed_on(sshd: Sshd) -> None:
    with interview(sshd, "keyboard-interactive") as (where, _):
        tunnel = run.SSHTunnel(**where)  # type: ignore[arg-type]
        with asking(person := Person({"Password": "pass word", "Code": "123"})):
            tunnel.connect()
        tunnel.close()
        assert [secret for _, secret in person.asked] == [True, False]
        assert person.asked[0][0].startswith("Two factors\n[somebody@127.0.0.1:")


@pytest.mark.parametrize("way", ["password", "keyboard-interactive"])
def test_without_a_person_nothing_is_asked(sshd: Sshd, way: str) -> None:
    with interview(sshd, way) as (where, server):
        said = refused(AuthenticationError, **where)
        assert f"{way} (there is no terminal to ask on)" in said
        assert server.tries == 0
