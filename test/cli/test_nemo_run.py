"""`nemo run FILE.py`, `nemo NAMESPACE NAME` and scripts that are commands, as processes of their own."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from programs import NEMO, call, failed, succeeded, write

SCRIPT = '''
from dataclasses import dataclass

import nemo_run as run


@dataclass
class Model:
    size: int = 1


@run.cli.factory
def big(size: int = 70) -> run.Config[Model]:
    return run.Config(Model, size=size)


@run.cli.factory
def two() -> run.Config[run.LocalExecutor]:
    return run.Config(run.LocalExecutor, env_vars={"WHERE": "two"})


@run.cli.entrypoint
def train(model: Model, lr: float = 0.1, text: str = "", fail: bool = False):
    """Train a model."""
    import os

    print("size", model.size, "lr", lr, "text", repr(text), os.environ.get("WHERE"))
    if fail:
        raise ValueError("as asked for")
    return model.size
'''
MAIN = """

if __name__ == "__main__":
    run.cli.main(train)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the user's with a script; NEMORUN_HOME is beside it."""
    monkeypatch.setenv("NEMORUN_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(write(tmp_path / "work" / "train.py", SCRIPT + MAIN).parent)
    write(tmp_path / "work" / "bare.py", SCRIPT)
    return tmp_path / "work"


def nemo(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return call([NEMO, *words], **options)


def script(*words: str) -> subprocess.CompletedProcess[str]:
    return call([sys.executable, "train.py", *words])


Run = Callable[..., subprocess.CompletedProcess[str]]
WAYS: list[Run] = [script, lambda *words: nemo("run", "bare.py", *words)]
BOTH = pytest.mark.parametrize("run", WAYS, ids=["script", "nemo"])


@BOTH
def test_a_command_runs_its_function_in_a_job(folder: Path, run: Run) -> None:
    words = (
        "model=big(size=3)",
        "model.size+=1",
        "lr=1e-3",
        "text=a b'$c",
        "run.executor=two",
        "--yes",
        "-n",
        "mine",
    )
    done = succeeded(run(*words))
    assert done.stdout == f"""mine │ size 4 lr 0.001 text {"a b'$c"!r} two\n"""
    found = json.loads(succeeded(nemo("experiment", "results", "mine", "--json")).stdout)
    assert found == {"mine": 4}


@BOTH
def test_a_command_whose_job_fails_fails(folder: Path, run: Run) -> None:
    told = failed(run("model=big", "fail=yes", "-y"))
    assert "ValueError: as asked for" in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["model=big", "epocks=1"], "unknown argument 'epocks'"),
        (["model=bug"], "model: 'bug' is not a Model; did you mean 'big'?"),
        (["model=big", "lr=ten"], "lr: 'ten' is not a number (lr: float of train, "),
        (["model=big", "train.yaml"], "'train.yaml' is not an override; write NAME=VALUE"),
        (["model=big", "run.executor=tow"], "did you mean 'two'?"),
        (["model=big", "--yaml", "no.yaml"], "there is no file 'no.yaml'"),
        (["model=big", "--factory", "no"], "no factory 'no' for train"),
        (["model=big", "--to-yaml", "a.yaml:modle"], "no section 'modle'; did you mean 'model'?"),
        (["lr=1"], "model is not set; write model=VALUE, for instance model=big"),
        (["--dryrn"], "No such option"),
    ],
)
def test_a_misuse_is_one_message_and_an_exit_code(folder: Path, words: list[str], told: str) -> None:
    done = WAYS[len(told) % 2](*words, "-y")  # what is said is the same in both
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder.parent / "home").exists()


def test_off_a_terminal_nobody_is_asked(folder: Path) -> None:
    told = failed(script("model=big"))
    assert told == (
        "train.py: nobody can be asked whether to run train: this is no terminal; "
        "give --yes (-y) to run it without being asked, or --dryrun to see what would run\n"
    )
    assert not (folder.parent / "home").exists()


@pytest.mark.parametrize("value", ["os.getcwd", "math.pi", "${x}", "a=b", "__import__('os')", "-y"])
def test_a_text_is_never_anything_else(folder: Path, value: str) -> None:
    done = succeeded(script("model=big", f"text={value}", "--direct", "--yes"))
    assert done.stdout == f"size 70 lr 0.1 text {value!r} None\n"


def test_a_script_goes_on_only_when_its_command_has_run(folder: Path) -> None:
    write(folder / "train.py", SCRIPT + "\n\nrun.cli.main(train)\nprint('goes on')\n")
    assert succeeded(script("model=big", "--direct", "-y")).stdout.endswith("\ngoes on\n")
    for words in (["--help"], ["--dryrun"], ["--to-yaml", "a.yaml"], ["--repl"]):
        assert "goes on" not in succeeded(script("model=big", *words)).stdout
    failed(script("model=big", "fail=yes", "-y"))


@BOTH
def test_a_dry_run_shows_the_arguments_and_the_plan(folder: Path, run: Run) -> None:
    done = succeeded(run("model=big(size=3)", "run.executor=two", "--dryrun"))
    assert done.stdout.startswith(
        """Arguments of train
  model       Model:
  model.size  3
  lr          0.1
  text        ''
  fail        False
Where and how it runs
  run.executor           LocalExecutor:
  run.executor.env_vars  {'WHERE': 'two'}
# --- job train of experiment train_"""
    )
    assert "export WHERE=two" in done.stdout
    assert done.stderr == ""
    assert not (folder.parent / "home").exists()


def test_a_dry_run_shows_what_slurm_would_be_sent(folder: Path) -> None:
    words = ("run.executor=SlurmExecutor(account=me, partition=gpu)", "run.executor.nodes=2")
    done = succeeded(script("model=big", *words, "run.executor.packager=Packager()", "--dryrun"))
    assert "#SBATCH --nodes=2\n" in done.stdout
    assert "#SBATCH --partition=gpu\n" in done.stdout


# --- files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("run", "kind"), [(WAYS[0], "yaml"), (WAYS[1], "toml"), (WAYS[1], "json")])
def test_an_export_is_read_back_the_same(folder: Path, run: Run, kind: str) -> None:
    words = ("model=big(size=3)", "text=a: b", f"--to-{kind}", f"a.{kind}")
    assert succeeded(run(*words)).stderr == f"Wrote a.{kind}.\n"
    succeeded(run("--yaml", f"a.{kind}", f"--to-{kind}", f"b.{kind}"))
    assert (folder / f"a.{kind}").read_text() == (folder / f"b.{kind}").read_text()
    done = succeeded(run("--factory", f"@a.{kind}", "lr=2", "--direct", "--yes"))
    assert done.stdout == "size 3 lr 2.0 text 'a: b' None\n"


def test_a_section_is_written_and_read(folder: Path) -> None:
    succeeded(script("model=big(size=3)", "--to-yaml", "model.yaml:model"))
    done = succeeded(script("model=@model.yaml", "model.size*=2", "--direct", "--yes"))
    assert done.stdout.startswith("size 6 ")


# --- the file -------------------------------------------------------------------------------------------


def test_a_file_with_a_main_part_keeps_what_that_says_of_the_command(folder: Path) -> None:
    more = MAIN.replace("main(train)", "main(train, default_executor=two())").replace(
        "run.cli", "print('no'); run.cli"
    )
    write(folder / "main.py", SCRIPT + more)
    done = succeeded(nemo("run", "main.py", "model=big", "-y"))
    assert done.stdout == "train │ size 70 lr 0.1 text '' two\n"


def test_plain_functions_are_commands_too(folder: Path) -> None:
    write(
        folder / "plain.py",
        "def one(x: int = 1):\n    'Print it.'\n    print(x)\n\ndef two(): ...\n\ndef _no(): ...\n",
    )
    assert succeeded(nemo("run", "plain.py", "one", "x=0x10", "--direct", "-y")).stdout == "16\n"
    assert "plain.py has several commands; name one: nemo run plain.py one | two" in failed(
        nemo("run", "plain.py")
    )
    assert "did you mean 'one'?" in failed(nemo("run", "plain.py", "on"))
    assert succeeded(nemo("run", "plain.py", "--help")).stdout == (
        "Usage: nemo run plain.py COMMAND [OPTIONS] [NAME=VALUE]...\n\nCommands:\n  one  Print it.\n  two\n"
    )


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (
            "import nothing_such",
            "nemo: cannot load bad.py:1: ModuleNotFoundError: No module named 'nothing_such'\n",
        ),
        ("x = 1\nx =", "nemo: cannot load bad.py:2: SyntaxError: invalid syntax\n"),
        ("x = 1", "nemo: bad.py defines no function; write one, and @run.cli.entrypoint above it\n"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_told_with_the_line(folder: Path, source: str, told: str) -> None:
    write(folder / "bad.py", source)
    assert failed(nemo("run", "bad.py")) == told


def test_a_file_that_is_not_there_is_told_with_the_nearest(folder: Path) -> None:
    assert failed(nemo("run", "trian.py")).startswith("nemo: no file 'trian.py'; did you mean 'train.py'")


def test_a_file_finds_the_modules_beside_it(folder: Path) -> None:
    write(folder / "deep" / "helper.py", "WORD = 'found'\n")
    write(folder / "deep" / "file.py", "from helper import WORD\n\ndef say(): print(WORD)\n")
    assert succeeded(nemo("run", "deep/file.py", "-y")).stdout == "say │ found\n"


# --- experiments ----------------------------------------------------------------------------------------

SWEEP = '''
import nemo_run as run


def say(word: str):
    print("I say", word)
    if word == "no":
        raise SystemExit(3)


@run.cli.entrypoint(type="experiment")
def sweep(ctx: run.cli.RunContext, words: list[str] = ["a", "b"]):
    """Say some words."""
    with run.Experiment(ctx.name) as exp:
        for word in words:
            exp.add(run.Partial(say, word=word), executor=ctx.executor, name=word)
        ctx.launch(exp, sequential=True)
'''


def test_an_experiment_is_launched_as_the_command_line_says(folder: Path) -> None:
    write(folder / "sweep.py", SWEEP)
    done = succeeded(nemo("run", "sweep.py", "words=[x,y]", "run.name=words", "--tail-logs", "-y"))
    assert done.stdout == "x │ I say x\ny │ I say y\n"
    assert succeeded(nemo("run", "sweep.py", "-y")).stdout == ""
    assert "exit code 3" in failed(nemo("run", "sweep.py", "words+=no", "-y"))
    dry = succeeded(nemo("run", "sweep.py", "--dryrun"))
    assert "  words  ['a', 'b']" in dry.stdout
    assert "# --- job b of experiment sweep_" in dry.stdout
    here = succeeded(nemo("run", "sweep.py", "--direct", "-y"))
    assert here.stdout == "I say a\nI say b\n"


def test_a_detached_command_returns_at_once(folder: Path) -> None:
    write(folder / "slow.py", "import time\n\ndef slow():\n    time.sleep(0.5)\n    return 5\n")
    done = succeeded(nemo("run", "slow.py", "--detach", "-y"))
    assert "goes on without this process" in done.stderr
    succeeded(nemo("experiment", "wait", "slow"))
    assert json.loads(succeeded(nemo("experiment", "results", "slow", "--json")).stdout) == {"slow": 5}


# --- asking ---------------------------------------------------------------------------------------------


def on_terminal(words: list[str], answer: str, expect: str) -> tuple[int, str]:
    """The exit code and all that a terminal shows, when this is typed as soon as that is shown."""
    terminal, inner = pty.openpty()
    child = subprocess.Popen(words, stdin=inner, stdout=inner, stderr=inner, start_new_session=True)
    os.close(inner)
    shown, deadline = "", time.monotonic() + 60
    while time.monotonic() < deadline:
        ready, _, _ = select.select([terminal], [], [], 0.2)
        try:
            read = os.read(terminal, 10_000).decode() if ready else None
        except OSError:  # how Linux says that the other side is gone
            break
        if read == "":
            break
        shown += read or ""
        if expect and expect in shown:
            os.write(terminal, answer.encode())
            expect = ""
    os.close(terminal)
    return child.wait(timeout=30), shown


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1), ("\n", 1), ("\x04", 1)])
def test_on_a_terminal_a_person_is_asked(folder: Path, answer: str, code: int) -> None:
    words = [sys.executable, "train.py", "model=big", "--direct"]
    ended, shown = on_terminal(words, answer, "Continue? [y/N]")
    assert ended == code, shown
    assert "model.size  70" in shown
    assert ("Nothing was run." in shown) == (code == 1)
    assert ("size 70 lr" in shown) == (code == 0)


def test_a_prompt_has_the_task(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "train.py", "model=big", "--repl"],
        input="task.model.size = 5\nsettings.direct = True\nprint(run_task())\n",
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "size 5 lr" in done.stdout
    assert "\n5\n" in done.stdout


def test_plugins_change_the_task_in_a_job_and_in_this_process(folder: Path) -> None:
    plugin = """

class Bigger(run.Plugin):
    def setup(self, task, executor):
        task.model.size += 1
        executor.env_vars["WHERE"] = "by plugin"


@run.cli.factory
def bigger() -> run.Config[Bigger]:
    return run.Config(Bigger)
"""
    write(folder / "plugged.py", SCRIPT + plugin)
    words = ("run", "plugged.py", "model=big", "run.plugins=[bigger, bigger]", "-y")
    assert succeeded(nemo(*words)).stdout == "train │ size 72 lr 0.1 text '' by plugin\n"
    assert succeeded(nemo(*words, "--direct")).stdout == "size 72 lr 0.1 text '' by plugin\n"
    dry = succeeded(nemo(*words, "--direct", "--dryrun"))
    assert dry.stdout.endswith("It would be called in this process.\n")


# --- tracebacks -----------------------------------------------------------------------------------------


def test_tracebacks_are_shown_on_request_and_without_locals(folder: Path) -> None:
    words = ("model=big", "text=pass_word", "fail=yes", "--direct", "--yes")
    plain = script(*words)
    assert plain.returncode == 1
    assert plain.stderr.count("\n  File ") == 1, plain.stderr
    assert plain.stderr.endswith("\nValueError: as asked for\n")
    assert script(*words, "--verbose").stderr.count("\n  File ") > 5
    rich = script(*words, "--rich-exceptions")
    assert rich.returncode == 1
    assert "─ Traceback (most recent call last) ─" in rich.stderr
    assert "pass_word" not in rich.stderr + plain.stderr
    assert "pass_word" in script(*words, "--rich-exceptions", "--rich-show-locals").stderr
    misuse = script("model=bug", "--verbose", "--yes")
    assert misuse.returncode == 2
    assert "Traceback" in misuse.stderr


# --- workspaces -----------------------------------------------------------------------------------------

FACTORY = """
import nemo_run as run

@run.cli.factory
def place() -> run.Config[run.LocalExecutor]:
    return run.Config(run.LocalExecutor, env_vars={{"WHERE": "{0}"}})
"""


def where(**options: Any) -> str:
    done = nemo("run", "bare.py", "model=big", "run.executor=place", "--direct", "--yes", **options)
    return succeeded(done).stdout.split()[-1]


def test_the_nearest_workspace_file_counts_and_a_private_one_before_it(folder: Path) -> None:
    write(folder.parent / "home" / "workspace.py", FACTORY.format("home"))
    assert where() == "home"
    write(folder.parent / "workspace.py", FACTORY.format("outside"))
    assert where() == "home"  # the folder above is no part of a repository
    (folder.parent / ".git").mkdir()
    assert where() == "outside"
    write(folder / "workspace.py", FACTORY.format("near"))
    assert where() == "near"
    write(folder / "workspace_private.py", FACTORY.format("private"))
    assert where() == "private"
    write(folder / "bare.py", SCRIPT.replace("two", "place"))
    assert where() == "place"  # what a file says itself counts most
    write(folder / "bare.py", SCRIPT)
    without = nemo("run", "bare.py", "run.executor=place", "-y", env={"INCLUDE_WORKSPACE_FILE": "false"})
    assert "'place' is not an Executor" in failed(without, 2)


def test_a_workspace_file_that_fails_is_told_with_the_line(folder: Path) -> None:
    write(folder / "workspace.py", "x = 1\nx.y\n")
    told = failed(nemo("run", "bare.py", "model=big", "-y"))
    assert told == (
        "nemo: cannot load workspace.py:2: AttributeError: 'int' object has no attribute 'y'; "
        "mend it, or leave workspace files out by INCLUDE_WORKSPACE_FILE=false\n"
    )


# --- packages -------------------------------------------------------------------------------------------

PACKAGE = '''
import sys

import nemo_run as run

print("imported", file=sys.stderr)


@run.cli.entrypoint(namespace="llm")
def pretrain(size: int = 1, lr: float = 0.1):
    """Train from the beginning."""
    print("size", size, "lr", lr)


@run.cli.entrypoint
def finetune(size: int = 1):
    print("finetune", size)


@run.cli.factory(target=pretrain)
def seven() -> run.Partial[None]:
    return run.Partial(pretrain, size=7)
'''


@pytest.fixture
def package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that offers commands."""
    site = folder.parent / "site"
    write(site / "words_for_test" / "__init__.py", "")
    write(site / "words_for_test" / "llm.py", PACKAGE)
    info = site / "words_for_test-1.0.dist-info"
    write(info / "METADATA", "Metadata-Version: 2.1\nName: words-for-test\nVersion: 1.0\n")
    write(info / "entry_points.txt", "[nemo_run.cli]\nllm = words_for_test.llm\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    return site


def test_packages_offer_commands(package: Path) -> None:
    assert "  Commands of words_for_test.llm.\n" in succeeded(nemo("--help")).stdout
    assert "imported" not in nemo("--help").stderr
    listed = succeeded(nemo("llm", "--help")).stdout
    assert "  finetune\n" in listed
    assert "  pretrain  Train from the beginning.\n" in listed
    done = succeeded(nemo("llm", "pretrain", "-f", "seven", "lr=2", "--yes"))
    assert done.stdout.splitlines()[-1] == "pretrain │ size 7 lr 2.0"
    assert succeeded(nemo("llm", "finetune", "size=3", "--direct", "-y")).stdout == "finetune 3\n"
    assert (
        "Usage: nemo llm pretrain [OPTIONS] [NAME=VALUE]..."
        in succeeded(nemo("llm", "pretrain", "--help")).stdout
    )
    assert "No such command 'pretrian'" in failed(nemo("llm", "pretrian"), 2)


def test_a_lazy_command_is_imported_in_its_job_alone(package: Path, folder: Path) -> None:
    write(folder / "more.yaml", "size: 5\n")
    words = ("--yaml", "more.yaml", "size+=1", "lr=2", "run.name=later", "--yes")
    done = succeeded(nemo("--lazy", "llm", "pretrain", *words))
    assert done.stdout.splitlines() == ["later │ imported", "later │ size 6 lr 2.0"]
    assert "imported" not in done.stderr
    assert "did you mean 'size'" in failed(nemo("--lazy", "llm", "pretrain", "sise=1", "-y"))
    shown = succeeded(nemo("--lazy", "llm", "pretrain", "size+=1", "--dryrun")).stdout
    assert "overrides  ['size+=1']" in shown


def test_a_package_that_cannot_be_imported_is_told(package: Path) -> None:
    write(package / "words_for_test" / "llm.py", "import nothing_such\n")
    told = failed(nemo("llm", "pretrain"))
    assert told == (
        "nemo: cannot load 'words_for_test.llm' for `nemo llm`: "
        "ModuleNotFoundError: No module named 'nothing_such'\n"
    )


def test_a_file_is_never_lazy(folder: Path) -> None:
    assert "--lazy is for the commands of packages" in failed(nemo("--lazy", "run", "bare.py", "-y"))


# --- scripts of many shapes -----------------------------------------------------------------------------


def test_a_file_that_starts_its_command_without_a_main_part_starts_it_once(folder: Path) -> None:
    write(folder / "open.py", SCRIPT + "\n\nrun.cli.main(train, cmd_defaults={'skip_confirmation': True})\n")
    for words in ([NEMO, "run", "open.py"], [sys.executable, "open.py"]):
        assert succeeded(call([*words, "model=big"])).stdout == "train │ size 70 lr 0.1 text '' None\n"


def test_a_default_for_no_option_is_refused(folder: Path) -> None:
    write(folder / "wrong.py", SCRIPT + "\n\nrun.cli.main(train, cmd_defaults={'skip_confirm': True})\n")
    told = failed(call([sys.executable, "wrong.py", "model=big"]))
    assert "no option 'skip_confirm'; did you mean 'skip_confirmation'?" in told


def test_a_module_is_a_command_too(folder: Path) -> None:
    write(folder / "pkg" / "train.py", SCRIPT + MAIN)
    module = [sys.executable, "-m", "pkg.train"]
    assert "Usage: python -m pkg.train [OPTIONS]" in succeeded(call([*module, "--help"])).stdout
    assert succeeded(call([*module, "model=big", "-y"])).stdout == "train │ size 70 lr 0.1 text '' None\n"


def test_a_function_without_an_executor_is_called_here(folder: Path) -> None:
    write(folder / "here.py", SCRIPT.replace("entrypoint", "entrypoint(enable_executor=False)"))
    assert succeeded(nemo("run", "here.py", "model=big", "-y")).stdout == "size 70 lr 0.1 text '' None\n"
    shown = succeeded(nemo("run", "here.py", "--help")).stdout
    assert "run.executor" not in shown
    assert "--detach" not in shown


def test_an_executor_that_cannot_be_built_is_told(folder: Path) -> None:
    source = """
    from dataclasses import dataclass
    import nemo_run as run

    @dataclass(kw_only=True)
    class Picky(run.LocalExecutor):
        size: int = 0

        def __post_init__(self):
            raise ValueError("too picky")

    @run.cli.factory
    def picky() -> run.Config[Picky]:
        return run.Config(Picky)

    def work(): ...
    """
    write(folder / "picky.py", source)
    told = failed(nemo("run", "picky.py", "work", "run.executor=picky", "-y"))
    assert told.startswith("nemo: run.executor or a plugin cannot be built: ValueError: too picky")


# --- other machines -------------------------------------------------------------------------------------


def test_a_command_runs_on_slurm(folder: Path, slurm: Any) -> None:
    executor = "run.executor=SlurmExecutor(time=5, packager=Packager())"
    done = succeeded(nemo("run", "bare.py", "model=big", executor, "run.executor.env_vars.WHERE=slurm", "-y"))
    assert done.stdout == "train │ size 70 lr 0.1 text '' slurm\n"
