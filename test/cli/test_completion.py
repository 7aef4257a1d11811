"""What Tab completes: asked of the command itself, and typed into real shells on a terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import need
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import NEMO, call, failed, succeeded, write

from nemo_run.cli import completion
from nemo_run.cli.source import read

SCRIPT = """
    import enum
    import os
    from dataclasses import dataclass
    from pathlib import Path
    from typing import Literal, Optional

    import nemo_run as run
    from models import Model

    Path("ran").touch()  # so that it is seen if this is run

    class Mode(enum.Enum):
        FAST = 1
        SLOW = 2

    @run.cli.factory(target_arg="steps", target=None)
    def many() -> int:
        return 100

    @run.cli.entrypoint
    def train(
        model: Model, steps: int = 1, mode: Mode = Mode.FAST, kind: Optional[Literal["one", "two"]] = None,
        really: "bool" = False, models: list[Model] = (),
    ): ...

    @run.cli.entrypoint(name="try-out")
    def attempt(*, data: os.PathLike, **rest): ...

    def helper(hidden): ...
"""
MODELS = """
    from dataclasses import dataclass
    from typing import ClassVar
    import nemo_run as run

    class Base:
        def __init__(self, dim: int = 1, act: str = ""): ...

    @dataclass
    class Layer(Base):
        width: int = 1
        registry: ClassVar[dict] = {}

    @dataclass
    class Model:
        layer: Layer | None = None
        size: int = 1

    @dataclass
    class Wide(Model):
        factor: float = 1.0

    @run.cli.factory(name="big-one")
    def wide() -> "run.Config[Wide]":
        return run.Config(Wide)

    @run.cli.factory
    def small() -> Model: ...

    @run.cli.factory
    def layered() -> run.Config[Layer]: ...
"""
WORKSPACE = """
    import nemo_run as run

    @run.cli.factory
    def cluster(nodes: int = 1) -> run.Config[run.SlurmExecutor]:
        raise RuntimeError("completion runs nothing")

    raise RuntimeError("completion runs nothing")
"""

#: What lines are made of at random.
PARTS = [
    "run ", "train.py ", "train ", "try-out ", "model", "=", ".", "layer", "small", "big-one", "(", ")", "'",
    "\\", "run.executor", "cluster", "--yaml", "--", "-", "experiment ", "logs ", "walk ", "executors ", '"',
    "[0]", "+", "$x", "ü", "\n", "init ", "/", "~", "..", "*", "#", "\0", "check ",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where commands are typed: a script, a module beside it, a workspace, and two experiments at home."""
    folder = tmp_path_factory.mktemp("completion")
    write(folder / "train.py", SCRIPT)
    write(folder / "models.py", MODELS)
    write(folder / "workspace.py", WORKSPACE)
    (folder / "data").mkdir()
    (folder / "conf.yaml").touch()
    (folder / "broken.py").write_text("def f(:")
    code = """if True:
        import nemo_run as run
        for title in ("walk", "it's a title"):
            exp = run.Experiment(title, clean_mode=True)
            exp.add(run.Script(inline="true"), name="first")
            exp.add(run.Script(inline="true"), name="second")
            exp.run()
    """
    env = {**os.environ, "NEMORUN_HOME": str(folder / "home")}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True)
    return folder


def offered(folder: Path, line: str, word: str | None = None) -> list[str]:
    """What may stand at the end of a line; by default the shell would replace what follows the last blank."""
    word = line.rpartition(" ")[2] if word is None else word
    env = {"NEMORUN_HOME": str(folder / "home")}
    done = succeeded(call([NEMO, "completion", "bash", "--", line, word], cwd=folder, env=env))
    assert done.stderr == ""
    assert not (folder / "ran").exists()
    return done.stdout.splitlines()


def ids(folder: Path) -> dict[str, str]:
    return {path.parent.name: path.name for path in (folder / "home" / "experiments").glob("*/*_*")}


# --- what is offered ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("nemo e", ["executors ", "experiment "]),
        ("nemo experiment l", ["list ", "logs "]),
        ("nemo experiment logs --r", ["--rank ", "--regex ", "--role "]),
        ("nemo experiment list --state RUN", ["RUNNING "]),
        ("nemo experiment logs walk ", ["first ", "second "]),
        ("nemo experiment logs -f walk s", ["second "]),
        ("nemo experiment logs nothing ", []),
        ("nemo experiment list ", ["it\\'s\\ a\\ title ", "walk "]),
        ("nemo completion z", ["zsh "]),
        ("nemo init d", ["data/"]),
        ("nemo nothing ", []),
        ("nemo 'unfinished", []),
        ("nemo run t", ["train.py "]),
        ("nemo run d", ["data/"]),
        ("nemo run nothing.py ", []),
        ("nemo run broken.py ", []),
        ("nemo run train.py t", ["train ", "try-out "]),
        ("nemo run train.py train m", ["mode=", "model.", "model=", "models="]),
        ("nemo run train.py train mode=", ["mode=FAST ", "mode=SLOW "]),
        ("nemo run train.py train really=", ["really=false ", "really=true "]),
        ("nemo run train.py train kind=", ["kind=None ", "kind=one ", "kind=two "]),
        ("nemo run train.py train steps=", ["steps=many "]),
        ("nemo run train.py train steps*=", ["steps\\*=many "]),
        ("nemo run train.py train model=", ["model=big-one ", "model=small "]),
        ("nemo run train.py train models=", ["models=big-one ", "models=small "]),
        ("nemo run train.py train model.", ["model.layer.", "model.layer=", "model.size="]),
        ("nemo run train.py train model.layer=", ["model.layer=None ", "model.layer=layered "]),
        ("nemo run train.py train model.layer.",
         ["model.layer.act=", "model.layer.dim=", "model.layer.width="]),
        ("nemo run train.py train model=big-one model.f", ["model.factor="]),
        ("nemo run train.py train 'model=big-one(factor=2)' model.f", ["model.factor="]),
        ("nemo run train.py train nothing.", []),
        ("nemo run train.py train nothing=", []),
        ("nemo run train.py try-out d", ["data="]),
        ("nemo run train.py train run.e", ["run.executor.", "run.executor="]),
        ("nemo run train.py train run.executor=L", ["run.executor=LocalExecutor "]),
        ("nemo run train.py train run.executor=c", ["run.executor=cluster "]),
        ("nemo run train.py train run.executor=cluster run.executor.part", ["run.executor.partition="]),
        ("nemo run train.py train run.executor=DockerExecutor run.executor.shm", ["run.executor.shm_size="]),
        ("nemo run train.py train --to", ["--to-json ", "--to-toml ", "--to-yaml "]),
        ("nemo run train.py train --yaml c", ["conf.yaml "]),
        ("nemo executors check c", ["cluster "]),
        ("nemo executors check cluster part", ["partition="]),
    ],
)  # fmt: skip
def test_what_fits_is_offered_and_no_file_is_run(folder: Path, line: str, expected: list[str]) -> None:
    assert offered(folder, line) == expected


def test_ids_of_experiments_are_offered_newest_or_not(folder: Path) -> None:
    known = ids(folder)
    assert offered(folder, "nemo experiment status ") == [
        known["it's a title"].replace("'", "\\'").replace(" ", "\\ ") + " ",
        known["walk"] + " ",
    ]
    assert offered(folder, "nemo experiment status wa") == [known["walk"] + " "]


def test_bash_is_given_what_stands_after_its_own_breaks_of_words(folder: Path) -> None:
    assert offered(folder, "nemo run train.py train model=b", "b") == ["big-one "]
    assert offered(folder, "nemo run train.py train model=", "") == ["big-one ", "small "]
    assert offered(folder, "nemo run train.py train 'model=b", "'model=b") == ["model=big-one"]


def test_a_name_that_no_terminal_should_print_is_not_offered(folder: Path) -> None:
    for name in ("new\nline.py", "new\x1b[2Jscreen.py"):
        (folder / name).touch()
        assert offered(folder, "nemo run new") == []
        (folder / name).unlink()


def test_a_shell_we_do_not_know_is_refused() -> None:
    said = failed(call([NEMO, "completion", "bsh"]))
    assert "no completion for shell 'bsh'; did you mean 'bash' or 'zsh'?" in said


def test_commands_of_installed_packages_are_offered_without_importing_them(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "offering.py").write_text((folder / "train.py").read_text())
    info = tmp_path / "offering-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: offering\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[nemo_run.cli]\nllm = offering\n")
    for line, expected in {
        "nemo l": ["launch ", "llm "],
        "nemo llm ": ["train ", "try-out "],
        "nemo llm train mod": ["mode=", "model.", "model=", "models="],
        "nemo llm train mode=F": ["mode=FAST "],
        "nemo llm nothing ": [],
        "nemo --lazy llm tra": ["train "],
    }.items():
        env = {"PYTHONPATH": f"{tmp_path}:{folder}"}
        argv = [NEMO, "completion", "bash", "--", line, line.rpartition(" ")[2]]
        assert succeeded(call(argv, cwd=tmp_path, env=env)).stdout.splitlines() == expected
    assert not (tmp_path / "ran").exists()


def test_ids_are_there_in_no_time(folder: Path) -> None:
    env = {**os.environ, "NEMORUN_HOME": str(folder / "home")}
    argv = [NEMO, "completion", "bash", "--", "nemo experiment status ", ""]
    times = []
    for _ in range(5):
        before = os.times()
        subprocess.run(argv, env=env, check=True, capture_output=True)
        after = os.times()
        # What others do on this machine is not to count.
        times.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )
    assert min(times) < 0.3


@settings(deadline=None)
@given(st.lists(st.sampled_from([*PARTS, "", " "]), max_size=8).map("".join))
def test_nothing_that_is_typed_is_too_much(folder: Path, line: str) -> None:
    words, _ = completion._split(f"nemo {line}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("NEMORUN_HOME", str(folder / "home"))
        for found in completion.candidates(words[1:]):
            assert found.startswith(words[-1])


@pytest.mark.parametrize(
    "text", ["", "import x", "from . import a", "from .. import b", "class A(A): ...", "x: A = 1"]
)
def test_any_file_of_python_can_be_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file.py"
    path.write_text(text)
    module = read(path)
    assert module is not None
    for name in ("a", "b", "x", "x.y", "A"):
        place = module.find(name)
        assert place is None or place.name == name


# --- real shells ----------------------------------------------------------------------------------------


class Shell:
    """An interactive shell on a terminal of its own."""

    def __init__(self, argv: list[str], setup: str, folder: Path) -> None:
        pid, self._terminal = pty.fork()
        if not pid:
            os.chdir(folder)
            path = f"{Path(NEMO).parent}:{os.environ['PATH']}"
            env = {"NEMORUN_HOME": str(folder / "home"), "HOME": str(folder), "TERM": "dumb", "PATH": path}
            os.execvpe(argv[0], argv, env)
        self._pid = pid
        self._name = argv[0]
        self._send(f"{setup}; printf '<%s>' ready\r")
        self._read("<ready>")

    def after_tab(self, typed: str, then: str = "") -> list[str]:
        """The words that the shell sees when a line is typed, Tab is pressed, then this typed, and Enter."""
        # To the start of the line, to have the words printed that would have been run.
        self._send(f"{typed}\t{then}\x01printf '<%s>' START \x05 END\r")
        printed = self._read("<END>").partition("<START>")[2]
        return re.findall(r"<([^>]*)>", printed)[:-1]

    def closing(self, quote: str) -> str:
        """What is left to type of a quote after a whole word: bash closes it by itself."""
        return "" if self._name == "bash" else quote

    def close(self) -> None:
        os.close(self._terminal)
        os.waitpid(self._pid, 0)

    def _send(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def _read(self, end: str, seconds: float = 30) -> str:
        text, deadline = "", time.monotonic() + seconds
        while end not in text:
            ready, _, _ = select.select([self._terminal], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {end} in {text!r}"
            text += os.read(self._terminal, 4096).decode()
        return text


_COMPINIT = "bindkey -e; autoload -U compinit; compinit -u -D"
#: How each is started, and completion set up in it, for now and for good.
SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(nemo completion bash)"'),
    "zsh": (["zsh", "-f", "-i"], f'{_COMPINIT}; eval "$(nemo completion zsh)"'),
    "zsh for good": (
        ["zsh", "-f", "-i"],
        f"mkdir ~/.zfunc; nemo completion zsh >~/.zfunc/_nemo; fpath+=~/.zfunc; {_COMPINIT}",
    ),
}


@pytest.fixture(scope="module", params=SHELLS)
def shell(request: pytest.FixtureRequest, folder: Path) -> Iterator[Shell]:
    argv, setup = SHELLS[request.param]
    need(argv[0], argv[0])
    started = Shell(argv, setup, folder)
    yield started
    started.close()


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("nemo exp", ["nemo", "experiment"]),
        ("nemo experiment sta", ["nemo", "experiment", "status"]),
        ("nemo run tra", ["nemo", "run", "train.py"]),
        ("nemo run train.py train model=b", ["nemo", "run", "train.py", "train", "model=big-one"]),
        ("nemo run train.py train model.layer.w", ["nemo", "run", "train.py", "train", "model.layer.width="]),
        ("nemo run train.py train model=small run.executor=cl",
         ["nemo", "run", "train.py", "train", "model=small", "run.executor=cluster"]),
        ("nemo run train.py train --det", ["nemo", "run", "train.py", "train", "--detach"]),
    ],
)  # fmt: skip
def test_a_shell_completes_what_is_typed(shell: Shell, typed: str, words: list[str]) -> None:
    assert shell.after_tab(typed) == words


@pytest.mark.parametrize("quote", ["'", '"'])
def test_what_is_completed_in_a_quote_stays_in_it(shell: Shell, quote: str) -> None:
    typed = f"nemo run train.py train {quote}model=b"
    assert shell.after_tab(typed, shell.closing(quote)) == [
        "nemo",
        "run",
        "train.py",
        "train",
        "model=big-one",
    ]


@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_a_name_that_would_run_something_runs_nothing(shell: Shell, folder: Path, quote: str) -> None:
    name = "odd $(touch ran) `touch ran`;touch ran.py"
    (folder / name).touch()
    assert shell.after_tab(f"nemo run {quote}od", shell.closing(quote)) == ["nemo", "run", name]
    assert not (folder / "ran").exists()
    (folder / name).unlink()


def test_a_shell_quotes_what_needs_quotes(shell: Shell, folder: Path) -> None:
    known = ids(folder)
    assert shell.after_tab("nemo experiment status w")[-1] == known["walk"]
    assert shell.after_tab("nemo experiment status it")[-1] == known["it's a title"]
    assert shell.after_tab("nemo experiment status it\\'s\\ a")[-1] == known["it's a title"]
