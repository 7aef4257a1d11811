"""What the scripts for many files print is read for what it is, or not at all."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_run.core.tunnel.base import line_of
from nemo_run.core.tunnel.scripts import CHANGED, parse_reading, reading
from nemo_run.shell import Expand

WORDS = st.binary(max_size=20).map(lambda data: data.replace(b"\0", b"").decode(errors="surrogateescape"))


def test_a_script_for_reading_is_what_a_person_could_read() -> None:
    text = reading([("/a b", 0), ("-x", 7)], 100)
    assert "f0='/a b'; [ -f \"$f0\" ] || f0=/dev/null\n" in text
    assert "f1=./-x; " in text
    assert 'set -- $(stat -L -c %s "$f0" "$f1")\n' in text


@pytest.mark.parametrize(
    ("printed", "found"),
    [
        (b"", {}),
        (b"0 3\nabc\n2 1\n\n\n", {0: b"abc", 2: b"\n"}),
        (b"0 3\nab\n", None),
        (b"0 3\nab", None),
        (b"noise\n0 1\na\n", None),
        (b"0 x\na\n", None),
    ],
)
def test_what_is_printed_is_read_whole_or_not_at_all(printed: bytes, found: object) -> None:
    assert parse_reading(printed) == found


def test_a_file_that_goes_while_it_is_looked_at_is_told(tmp_path: Path) -> None:
    """The `stat` of a machine on which one of the files has just been removed."""
    stat = tmp_path / "stat"
    stat.write_text("#!/bin/sh\necho 5\n")
    stat.chmod(0o755)
    script = f"PATH={tmp_path}:$PATH\n" + reading([("/etc/passwd", 0), ("/etc/group", 0)], 10)
    done = subprocess.run(["sh", "-s"], input=script, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (CHANGED, "")


@given(st.lists(WORDS, min_size=1))
def test_any_words_come_through_the_shell_as_they_are(words: list[str]) -> None:
    for shell in (None, "/bin/bash"):
        line = line_of(["printf", "%s\\0", *words], "true", shell)
        printed = subprocess.run([b"/bin/sh", b"-c", line], capture_output=True, check=True).stdout
        assert printed == b"".join(word.encode(errors="surrogateescape") + b"\0" for word in words)


def test_what_is_marked_is_expanded_over_there() -> None:
    line = line_of(["echo", Expand("$((1 + 1))"), "$((1 + 1))"])
    assert subprocess.check_output([b"/bin/sh", b"-c", line]) == b"2 $((1 + 1))\n"
