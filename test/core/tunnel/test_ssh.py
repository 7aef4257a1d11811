"""One connection serves all, holds, and is made anew; what was cut off is never silently done twice."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from programs import python, succeeded, until, write
from sshds import Sshd, running_sshd

import nemo_run as run
from nemo_run.errors import AuthenticationError, TunnelError


@pytest.fixture
def tunnel(sshd: Sshd) -> Iterator[run.SSHTunnel]:
    opened = run.SSHTunnel(**sshd.where)
    yield opened
    opened.close()


def test_no_connection_is_lost_by_many_short_commands_at_once(sshd: Sshd, tunnel: run.SSHTunnel) -> None:
    """The end of a command's input must not follow its channel's end, or the server hangs up on all."""
    with ThreadPoolExecutor(20) as pool:
        said = list(pool.map(lambda at: tunnel.run(["echo", str(at)], stdin=b"x").text, range(300)))
    assert said == [f"{at}\n" for at in range(300)]
    assert sshd.logins() == 1
    assert "Disconnecting" not in sshd.log.read_text()


def started(act: Callable[[], Any]) -> Callable[[], Any]:
    """Do something in a thread; the result waits for it, and raises what it raised."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(act)
    pool.shutdown(wait=False)
    return lambda: future.result(60)


def gate(sshd: Sshd, program: str) -> Path:
    """Have a program over there wait: it makes a file `NAME.started` and goes on when there is `NAME.go`."""
    wrapper = sshd.folder / "bin" / program
    wait = f'touch "$0.started"; until [ -e "$0.go" ]; do sleep 0.02; done; exec /usr/bin/{program} "$@"'
    write(wrapper, f"#!/bin/sh\n{wait}\n").chmod(0o755)
    sshd.restart({"PATH": f"{wrapper.parent}:{os.environ['PATH']}"})
    return wrapper


# --- one connection -------------------------------------------------------------------------------------


def test_all_tunnels_to_a_place_share_one_connection(sshd: Sshd, tunnel: run.SSHTunnel) -> None:
    others = [run.SSHTunnel(**sshd.where, job_dir=f"/{at}", pre_command="true") for at in range(20)]

    def use(other: run.SSHTunnel) -> list[str]:
        return [other.run(["echo", f"{other.job_dir} {at}"]).text for at in range(5)]

    with ThreadPoolExecutor(20) as pool:
        said = list(pool.map(use, others))
    assert said == [[f"/{at} {number}\n" for number in range(5)] for at in range(20)]
    assert sshd.logins() == 1
    assert len(sshd.connections()) == 1


def test_a_server_that_allows_few_sessions_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_sshd(settings="MaxSessions 2\n") as sshd:
        monkeypatch.setenv("HOME", str(sshd.home))
        tunnel = run.SSHTunnel(**sshd.where)
        with ThreadPoolExecutor(8) as pool:
            codes = list(pool.map(lambda _: tunnel.run(["sleep", "0.05"]).exit_code, range(24)))
        assert (codes, sshd.logins()) == ([0] * 24, 1)
        tunnel.close()


def test_a_forked_process_has_a_connection_of_its_own(sshd: Sshd, tmp_path: Path) -> None:
    script = f"""
        import os, nemo_run as run
        tunnel = run.SSHTunnel(**{sshd.where!r})
        assert tunnel.run(["echo", "parent"]).text == "parent\\n"
        child = os.fork()
        if not child:
            ok = tunnel.run(["echo", "child"]).text == "child\\n"
            os._exit(0 if ok else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert tunnel.run(["echo", "parent"]).text == "parent\\n"
    """
    succeeded(python("-W", "ignore", write(tmp_path / "script.py", script)))
    assert sshd.logins() == 2


def test_an_open_connection_makes_commands_quick(tunnel: run.SSHTunnel) -> None:
    tunnel.connect()
    best = min(_seconds(lambda: tunnel.run(["true"])) for _ in range(50))
    assert best < 0.04, "without TCP_NODELAY it would be 0.044 s"


def _seconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def test_what_is_said_does_not_depend_on_the_locale(sshd: Sshd, tmp_path: Path) -> None:
    script = f"""
        import nemo_run as run
        tunnel = run.SSHTunnel(**{sshd.where!r})
        words = ["\\xe9\\u4e16", "\\udcff"]
        assert tunnel.run(["printf", "%s|", *words]).text == "\\xe9\\u4e16|\\udcff|"
        tunnel.write({str(tmp_path)!r}, {{"\\xe9": b"1"}})
        assert tunnel.read({{{str(tmp_path)!r} + "/\\xe9": 0}}) == {{{str(tmp_path)!r} + "/\\xe9": b"1"}}
        tunnel.close()
    """
    path = write(tmp_path / "script.py", script)
    for locale in ("C", "POSIX", "de_DE.ISO-8859-1"):
        env = {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        succeeded(python("-W", "error", path, env=env))
    assert (tmp_path / "é").read_bytes() == b"1"


# --- cut connections ------------------------------------------------------------------------------------


def test_a_command_that_is_cut_off_is_not_run_again(
    sshd: Sshd, tunnel: run.SSHTunnel, tmp_path: Path
) -> None:
    count = tmp_path / "count"
    ended = started(lambda: tunnel.run(["sh", "-c", f"echo x >> '{count}'; exec sleep 100"]))
    until(lambda: count.exists() and count.read_text())
    assert sshd.cut() >= 1
    with pytest.raises(TunnelError, match="nobody can say whether it was carried out") as caught:
        ended()
    assert caught.value.ran is None
    assert tunnel.run(["cat", str(count)]).text == "x\n"
    assert sshd.logins() == 2


def test_a_command_that_may_run_twice_is_run_again(sshd: Sshd, tunnel: run.SSHTunnel, tmp_path: Path) -> None:
    count = tmp_path / "count"
    script = f"echo x >> '{count}'; [ $(wc -l < '{count}') -ge 2 ] || exec sleep 100; echo done"
    ended = started(lambda: tunnel.run(["sh", "-c", script], retry=True))
    until(lambda: count.exists() and count.read_text())
    assert sshd.cut() >= 1
    assert ended().text == "done\n"
    assert count.read_text() == "x\nx\n"


def test_a_command_that_ends_itself_by_a_signal_is_not_taken_for_done(tunnel: run.SSHTunnel) -> None:
    with pytest.raises(TunnelError) as caught:
        tunnel.run(["sh", "-c", "kill -9 $PPID $$"])
    assert caught.value.ran is None


def test_files_of_an_upload_that_was_cut_come_whole_or_not_at_all(
    sshd: Sshd, tunnel: run.SSHTunnel, tmp_path: Path
) -> None:
    wrapper, folder = gate(sshd, "cat"), tmp_path / "there"
    files = {f"{at}": os.urandom(20_000) for at in range(100)}
    ended = started(lambda: tunnel.write(str(folder), files))
    until(wrapper.with_name("cat.started").exists)
    assert sshd.cut() >= 1
    assert [path.name[:8] for path in folder.iterdir()] == [".upload."]
    wrapper.with_name("cat.go").touch()
    ended()
    until(lambda: not list(folder.glob(".upload.*")))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert sshd.logins() == 2


def test_rsync_goes_on_after_a_cut(sshd: Sshd, tunnel: run.SSHTunnel, tmp_path: Path) -> None:
    wrapper, source, there = gate(sshd, "rsync"), tmp_path / "source", tmp_path / "there"
    source.write_bytes(os.urandom(3_000_000))
    ended = started(lambda: tunnel.put(source, str(there)))
    until(wrapper.with_name("rsync.started").exists)
    assert sshd.cut() >= 1
    assert not there.exists()
    wrapper.with_name("rsync.go").touch()
    ended()
    assert there.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("by", ["rsync", "SFTP"])
def test_a_big_file_arrives_through_many_cuts(
    sshd: Sshd, tunnel: run.SSHTunnel, tmp_path: Path, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, there = tmp_path / "source", tmp_path / "there" / "big"
    source.write_bytes(os.urandom(30_000_000))
    there.parent.mkdir()
    if by == "SFTP":
        sshd.restart({"PATH": str(write(sshd.folder / "none" / "x", "").parent) + ":/bin:/usr/bin"})
        monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}" if name != "rsync" else None)
    ended = started(lambda: tunnel.put(source, str(there)))
    for _ in range(2):
        until(lambda: there.exists() or (sshd.connections() and any(there.parent.iterdir())))
        sshd.cut()
    ended()
    assert there.read_bytes() == source.read_bytes()


def test_a_cut_while_logging_in_is_no_refusal(sshd: Sshd, tunnel: run.SSHTunnel) -> None:
    deadline = time.monotonic() + 2

    def cut_all() -> None:
        while time.monotonic() < deadline:
            sshd.cut()

    done, refusals = started(cut_all), list[TunnelError]()
    while time.monotonic() < deadline:
        try:
            tunnel.run(["true"])
        except AuthenticationError as exc:
            refusals.append(exc)
        except TunnelError:
            continue
    done()
    assert not refusals
    assert tunnel.run(["echo", "in"]).text == "in\n"


def test_a_server_that_is_restarted_is_waited_for(sshd: Sshd, tunnel: run.SSHTunnel, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("one\n")
    assert tunnel.read({str(log): 0}) == {str(log): b"one\n"}
    sshd.stop()
    sshd.cut()
    with open(log, "a") as out:
        out.write("two\n")
    ended = started(lambda: tunnel.read({str(log): 4}))
    time.sleep(1)  # it is refused meanwhile, more than once
    sshd.start()
    assert ended() == {str(log): b"two\n"}
    assert tunnel.run(["echo", "again"]).text == "again\n"


# --- reaching it ----------------------------------------------------------------------------------------


def test_a_machine_that_is_not_there_is_said_soon(sshd: Sshd) -> None:
    sshd.stop()
    start = time.monotonic()
    with pytest.raises(
        TunnelError, match=r"cannot be reached: Connection refused. Try `ssh -p \d+ "
    ) as caught:
        run.SSHTunnel(**sshd.where).run(["true"])
    assert caught.value.ran is False
    assert time.monotonic() - start < 20
    with pytest.raises(TunnelError, match=r"no\.such\.host\.invalid cannot be reached"):
        run.SSHTunnel(host="no.such.host.invalid").connect()


def test_what_ssh_is_configured_to_do_holds_here(sshd: Sshd) -> None:
    config = sshd.ssh_config.read_text()
    extra = sshd.home / ".ssh" / "more"
    extra.write_text(
        f"Host cluster\n HostName {sshd.host}\n Port {sshd.port}\n User {sshd.user}\n"
        f" IdentityFile {sshd.folder}/%r_%p_key\n"
    )
    (sshd.folder / f"{sshd.user}_{sshd.port}_key").write_bytes(sshd.identity.read_bytes())
    sshd.ssh_config.write_text(f"Include {extra}\nHost *\n{config}")
    tunnel = run.SSHTunnel(host="cluster")
    assert tunnel.run(["echo", "there"]).text == "there\n"
    tunnel.close()


@pytest.mark.parametrize("way", ["ProxyJump", "ProxyCommand"])
def test_another_machine_is_gone_through(sshd: Sshd, way: str) -> None:
    with running_sshd() as inner:
        own = f"-F {sshd.ssh_config} -i {sshd.identity} -p {sshd.port}"
        through = {
            "ProxyJump": f"ProxyJump {sshd.user}@outer",
            "ProxyCommand": f"ProxyCommand ssh {own} -W %h:%p {sshd.user}@{sshd.host}",
        }
        sshd.ssh_config.write_text(
            f"Host outer\n HostName {sshd.host}\n Port {sshd.port}\n IdentityFile {sshd.identity}\n"
            f"Host inner\n HostName {inner.host}\n Port {inner.port}\n IdentityFile {inner.identity}\n"
            f" {through[way]}\nHost *\n UserKnownHostsFile {sshd.known_hosts}\n"
        )
        sshd.known_hosts.write_text(sshd.known_line + inner.known_line)
        tunnel = run.SSHTunnel(host="inner", user=inner.user)
        assert tunnel.run(["cat"], stdin=b"x" * 1_000_000).stdout == b"x" * 1_000_000
        assert (sshd.logins(), inner.logins()) == (1, 1)
        if way == "ProxyJump":
            sshd.cut()
            assert tunnel.run(["echo", "again"], retry=True).text == "again\n"
            assert (sshd.logins(), inner.logins()) == (2, 2)
        tunnel.close()
        run.SSHTunnel(host="outer", user=sshd.user).close()
