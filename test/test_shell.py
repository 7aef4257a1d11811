"""What becomes shell text stays what it was, unless it is marked to be expanded."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from contracts.executor import HOSTILE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemo_run.shell import Expand, expands, exports, is_name, join, quote, through_shell

PRINT = "import os, sys; sys.stdout.buffer.write(b'\\0'.join(map(os.fsencode, sys.argv[1:])))"
#: As text, whatever bytes a shell can be given.
WORDS = st.binary(max_size=40).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"")))
few = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def by_shell(text: str, shell: str = "/bin/sh") -> bytes:
    """What a shell prints for a text."""
    return subprocess.run([shell, "-c", text], stdout=subprocess.PIPE, check=True).stdout


def printed(words: list[str]) -> list[bytes]:
    """The arguments of a command that a shell is given as a line of text."""
    return by_shell(join([sys.executable, "-c", PRINT, *words])).split(b"\0")


def test_hostile_words_stay_what_they_are() -> None:
    assert printed(HOSTILE) == [os.fsencode(word) for word in HOSTILE]


@few
@given(st.lists(WORDS, min_size=1, max_size=30))
def test_any_words_stay_what_they_are(words: list[str]) -> None:
    assert printed(words) == [os.fsencode(word) for word in words]


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_any_shell_will_do(shell: str) -> None:
    text = join([sys.executable, "-c", PRINT, *HOSTILE])
    assert by_shell(text, shell).split(b"\0") == [os.fsencode(word) for word in HOSTILE]


@few
@given(st.dictionaries(st.from_regex(r"V_[a-zA-Z0-9_]{0,8}", fullmatch=True), WORDS, min_size=1, max_size=20))
def test_exported_values_stay_what_they_are(variables: dict[str, str]) -> None:
    code = (
        "import os, sys; sys.stdout.buffer.write(b'\\0'.join(os.environb[n.encode()] for n in sys.argv[1:]))"
    )
    text = exports(variables) + join([sys.executable, "-c", code, *variables])
    assert by_shell(text).split(b"\0") == [os.fsencode(value) for value in variables.values()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$A", "a  value"),
        ("${A}/$(echo x)", "a  value/x"),
        ("`echo x`", "x"),
        ("$((1 + 2))", "3"),
        ('$(echo "x  y")', "x  y"),
        ('$(printf %s "$(echo ")")")', ")"),
        ("say \"$A\" and '$A'", "say \"a  value\" and 'a  value'"),
        ("* ~ ; & | > < # !", "* ~ ; & | > < # !"),
        ("two\nlines", "two\nlines"),
        ("plain", "plain"),
        ("", ""),
        ("(a) $A", "(a) a  value"),
        ('`echo "a  b"` "c"', 'a  b "c"'),
        ("é $A", "é a  value"),
        (r"\$A", "$A"),
        (r"say \"$A\"", 'say "a  value"'),
        ("$(printf %s ')\"')\"", ')""'),
        ('$(echo "(")"', '("'),
        ('$(echo `echo "a  b"`) "', 'a b "'),
        ("it's `echo 'x  y'`", "it's x  y"),
        ("C:\\", "C:\\"),
        (r"a\\", "a\\"),
        ("$A\\", "a  value\\"),
    ],
)
def test_an_expand_is_expanded_once_and_stays_one_word(text: str, expected: str) -> None:
    line = "A='a  value'; export A; " + join([sys.executable, "-c", PRINT, Expand(text), "end"])
    assert by_shell(line).split(b"\0") == [expected.encode(), b"end"]


def test_through_a_shell_only_what_is_marked_is_expanded() -> None:
    env = {"MARKED": Expand("$HOME/x"), "PLAIN": "$HOME"}
    argv = [sys.executable, "-c", PRINT, "$HOME", Expand("$MARKED"), Expand("$PLAIN")]
    command = through_shell(argv, env)
    done = subprocess.run(command, env={"HOME": "/me", "PLAIN": "$HOME"}, stdout=subprocess.PIPE, check=True)
    assert done.stdout.split(b"\0") == [b"$HOME", b"/me/x", b"$HOME"]


def test_the_command_takes_the_place_of_its_shell() -> None:
    code = "import os; print(os.getpid())"
    process = subprocess.Popen(
        through_shell([sys.executable, "-c", code, Expand("$HOME")], {}), stdout=subprocess.PIPE, text=True
    )
    assert int(process.communicate()[0]) == process.pid


@pytest.mark.parametrize(
    ("argv", "env", "needed"),
    [
        (["a", "$b"], {"C": "$d"}, False),
        (["a", Expand("$b")], {}, True),
        (["a"], {"C": Expand("$d")}, True),
    ],
)
def test_a_shell_is_needed_only_for_what_is_marked(
    argv: list[str], env: dict[str, str], needed: bool
) -> None:
    assert expands(argv, env) is needed


def test_names_are_those_a_shell_takes() -> None:
    assert all(map(is_name, ("A", "_", "a1", "HF_TOKEN")))
    assert not any(map(is_name, ("", "1A", "a-b", "a b", "a=b", "é", "A\n", "a.b")))


def test_it_says_what_it_is() -> None:
    assert repr(Expand("$HOME")) == "Expand('$HOME')"
    assert quote(Expand("$HOME")) == '"$HOME"'
    assert quote("$HOME") == "'$HOME'"
