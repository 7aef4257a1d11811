"""What every tunnel does, seen on this machine and on one behind a real sshd."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import until
from sshds import Sshd

import nemo_run as run
from nemo_run.core.serialization import from_json, to_json
from nemo_run.core.tunnel.base import Tunnel
from nemo_run.errors import ConfigError, TunnelError

HOSTILE = [
    "a b", "a'b", 'a"b', "$a", "`a`", ";", "\\", "\n", "é", "", "-x", "*", "~", "a\\'b", "!x", "\t", "{a,b}",
    "\udcff\udc80", "$(touch hacked)", "#", "=", "&&", "\r", "%s",
]  # fmt: skip


@pytest.fixture(params=["local", "ssh", "ssh with a command before", "ssh with a shell"])
def tunnel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tunnel]:
    if request.param == "local":
        yield run.LocalTunnel()
        return
    sshd: Sshd = request.getfixturevalue("sshd")
    fields = {
        "ssh with a command before": {"pre_command": "echo noise; GREETING=hello; export GREETING # done"},
        "ssh with a shell": {"shell": "/bin/bash"},
    }
    opened = run.SSHTunnel(**sshd.where, **fields.get(request.param, {}))
    yield opened
    opened.close()


def test_arguments_arrive_byte_for_byte(tunnel: Tunnel) -> None:
    result = tunnel.run(["printf", "%s\\0", *HOSTILE])
    assert result.stdout == b"".join(word.encode(errors="surrogateescape") + b"\0" for word in HOSTILE)
    assert result.text.split("\0")[:-1] == HOSTILE
    assert result.argv == ("printf", "%s\\0", *HOSTILE)


def test_outputs_and_exit_code_are_told_apart(tunnel: Tunnel) -> None:
    result = tunnel.run(["sh", "-c", "echo out; echo err >&2; exit 7"], check=False)
    assert (result.exit_code, result.stdout) == (7, b"out\n")
    assert result.stderr.endswith(b"err\n")


def test_a_failure_says_what_failed_and_in_whose_words(tunnel: Tunnel) -> None:
    with pytest.raises(
        TunnelError, match=r"(?s)`ls /no/such` on .* failed with exit code 2: .*/no/such"
    ) as caught:
        tunnel.run(["ls", "/no/such"])
    assert caught.value.ran is True
    assert caught.value.result.exit_code == 2


@pytest.mark.parametrize("size", [0, 10, 5_000_000])
def test_input_of_any_size_comes_back(tunnel: Tunnel, size: int) -> None:
    data = os.urandom(size)
    assert tunnel.run(["cat"], stdin=data).stdout == data


def test_a_command_need_not_read_its_input(tunnel: Tunnel) -> None:
    assert tunnel.run(["echo", "done"], stdin=b"x" * 5_000_000).stdout == b"done\n"


def test_much_on_both_outputs_at_once_comes_through(tunnel: Tunnel) -> None:
    print_both = "head -c 100000 /dev/zero; head -c 100000 /dev/zero >&2"
    lines = f"i=0; while [ $i -lt 40 ]; do {print_both}; i=$((i+1)); done"
    result = tunnel.run(["sh", "-c", lines])
    assert len(result.stdout) == 4_000_000
    assert len(result.stderr) >= 4_000_000


def test_a_command_that_takes_too_long_is_left(tunnel: Tunnel) -> None:
    with pytest.raises(TunnelError, match=r"0\.3 s") as caught:
        tunnel.run(["sleep", "20"], timeout=0.3)
    assert caught.value.ran is None


@pytest.mark.parametrize("argv", [[], "ls -l", ["a\0b"]])
def test_what_is_no_command_is_refused(argv: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"list of words|NUL"):
        run.LocalTunnel().run(argv)


# --- many small files -----------------------------------------------------------------------------------


def test_many_files_are_written_with_their_mode(tunnel: Tunnel, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "it's é"
    files = {"a b/c'd": b"1", "é": b"\0\xff", "deep/er/x": b"", "-x": b"2", "new\nline": b"3"}
    tunnel.write(str(folder), files, mode=0o640)
    tunnel.write(str(folder), {"é": b"again"})
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    assert {name: path.read_bytes() for name, path in found.items()} == files | {"é": b"again"}
    assert {name: stat.S_IMODE(path.stat().st_mode) for name, path in found.items()} == {
        **dict.fromkeys(files, 0o640),
        "é": 0o600,
    }
    assert stat.S_IMODE((folder / "deep").stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "", "a\0b"])
def test_no_file_is_written_outside_its_folder(tunnel: Tunnel, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="no name of a file below a folder"):
        tunnel.write(str(tmp_path), {"fine": b"", name: b""})
    assert not list(tmp_path.glob("fine"))


def test_a_folder_that_cannot_be_made_is_said(tunnel: Tunnel, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TunnelError, match=r"Not a directory|File exists|cannot create"):
        tunnel.write(str(tmp_path / "file" / "below"), {"a": b""})


def test_files_are_read_from_an_offset_on(tunnel: Tunnel, tmp_path: Path) -> None:
    content = {"a b": b"0123456789", "it's\n": b"\xff\n\n2 5\nx", "empty": b"", "-n": b"short"}
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    offsets = {str(tmp_path / name): at for name, at in {"a b": 4, "it's\n": 0, "empty": 0, "-n": 5}.items()}
    offsets[str(tmp_path / "missing")] = 0
    found = {Path(path).name: data for path, data in tunnel.read(offsets).items()}
    assert found == {"a b": b"456789", "it's\n": b"\xff\n\n2 5\nx"}
    assert tunnel.read({str(tmp_path / "a b"): 2}, limit=3) == {str(tmp_path / "a b"): b"234"}
    assert tunnel.read({}) == {}


def test_a_log_is_followed_by_its_offset(tunnel: Tunnel, tmp_path: Path) -> None:
    log, got = tmp_path / "log", b""
    with open(log, "ab", buffering=0) as out:
        for part in (b"one\n", b"tw", b"o\n", b""):
            out.write(part)
            got += tunnel.read({str(log): len(got)}).get(str(log), b"")
            assert got == log.read_bytes()


def test_hundreds_of_files_are_one_command(tunnel: Tunnel, tmp_path: Path) -> None:
    files = {f"job{at}/log": f"{at}\n".encode() * 10 for at in range(300)}
    tunnel.write(str(tmp_path), files)
    offsets = {str(tmp_path / name): 0 for name in files}
    assert tunnel.read(offsets) == {str(tmp_path / name): data for name, data in files.items()}


# --- files and folders ----------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with names and modes of all kinds."""
    root = tmp_path / "it's a tree"
    for name, mode in (("a b", 0o755), ("é/deep/x", 0o600), ("-rf", 0o644), ("new\nline;$x", 0o444)):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 1000)
        path.chmod(mode)
    (root / "empty").mkdir(mode=0o750)
    (root / "link").symlink_to("a b")
    (root / "broken").symlink_to("no/such")
    return root


def picture(root: Path) -> dict[str, tuple[int, bytes | str]]:
    """All that a folder holds, so that two can be compared."""
    return {
        str(path.relative_to(root)): (
            stat.S_IMODE(path.lstat().st_mode),
            os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else "",
        )
        for path in sorted(root.rglob("*"))
    }


def without_rsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that has `sh` and `ssh` alone."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for program in ("sh", "ssh"):
        (folder / program).symlink_to(f"/usr/bin/{program}")
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.parametrize("by", ["rsync", "SFTP"])
def test_a_folder_goes_there_and_back(
    tunnel: Tunnel, tree: Path, tmp_path: Path, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "SFTP":
        without_rsync(tmp_path, monkeypatch)
    there, back = tmp_path / "there" / "$(deep) é", tmp_path / "back" / "x"
    tunnel.put(tree, str(there))
    (there / "beside").write_text("stays")
    (tree / "a b").write_text("changed")
    tunnel.put(tree, str(there))
    expected = picture(tree)
    assert picture(there).pop("beside")
    assert {name: each for name, each in picture(there).items() if name != "beside"} == expected
    tunnel.get(str(there), back)
    assert picture(back) == picture(there)


@pytest.mark.parametrize("by", ["rsync", "SFTP"])
def test_a_file_that_has_not_changed_is_not_sent_again(
    tunnel: Tunnel, tmp_path: Path, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "SFTP":
        without_rsync(tmp_path, monkeypatch)
    source, there, back = tmp_path / "big", tmp_path / "there" / "a'b", tmp_path / "back"
    source.write_bytes(os.urandom(10_000_000))
    source.chmod(0o640)
    tunnel.put(source, str(there))
    assert there.read_bytes() == source.read_bytes()
    before = there.stat()
    tunnel.put(source, str(there))
    after = there.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    source.write_bytes(b"new")
    tunnel.put(source, str(there))
    assert (there.read_bytes(), stat.S_IMODE(there.stat().st_mode)) == (b"new", 0o640)
    tunnel.get(str(there), back)
    assert back.read_bytes() == b"new"
    assert [path.name for path in there.parent.iterdir()] == ["a'b"]


@pytest.mark.parametrize("by", ["rsync", "SFTP"])
def test_what_is_not_there_cannot_be_copied(
    tunnel: Tunnel, tmp_path: Path, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "SFTP":
        without_rsync(tmp_path, monkeypatch)
    with pytest.raises(TunnelError, match="no_such"):
        tunnel.put(tmp_path / "no_such", str(tmp_path / "x"))
    with pytest.raises(TunnelError, match="no_such"):
        tunnel.get(str(tmp_path / "no_such"), tmp_path / "x")
    assert not (tmp_path / "x").exists()


# --- settings -------------------------------------------------------------------------------------------


def test_a_tunnel_is_written_down_and_read_again() -> None:
    import fiddle as fdl

    tunnels = [
        run.LocalTunnel(job_dir="/jobs"),
        run.SSHTunnel(host="h", user="u", job_dir="/j", identity="~/.ssh/k", port=2, pre_command="a && b"),
    ]
    assert [fdl.build(from_json(to_json(tunnel))) for tunnel in tunnels] == tunnels
    assert [tunnel.key for tunnel in tunnels] == ["localhost", "u@h"]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"host": ""}, "SSHTunnel.host is ''"),
        ({"host": "-oProxyCommand=x"}, "SSHTunnel.host is '-oProxyCommand=x'"),
        ({"host": "a b"}, "SSHTunnel.host is 'a b'"),
        ({"host": "h", "user": "x;y"}, "SSHTunnel.user is 'x;y'"),
        ({"host": "h", "port": 0}, "SSHTunnel.port is 0"),
        ({"host": "h", "port": "22"}, "SSHTunnel.port is '22'"),
        ({"host": "h", "identity": ""}, "SSHTunnel.identity is ''"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(fields: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        run.SSHTunnel(**fields)  # type: ignore[arg-type]


def test_a_command_before_sets_up_each_command_and_its_words_are_kept_apart(sshd: Sshd) -> None:
    tunnel = run.SSHTunnel(
        **sshd.where, pre_command="echo noise\nread line; export GREETING=hello # a comment"
    )
    result = tunnel.run(["sh", "-c", 'cat; echo "$GREETING"'], stdin=b"input ")
    assert (result.stdout, result.stderr) == (b"input hello\n", b"noise\n")
    failing = run.SSHTunnel(**sshd.where, pre_command="echo no such module >&2; false")
    with pytest.raises(TunnelError, match="no such module"):
        failing.run(["touch", str(sshd.folder / "never")])
    assert not (sshd.folder / "never").exists()
    tunnel.close()
    until(lambda: not sshd.connections())
