"""`nemo launch SCRIPT.py [-- FLAGS]`, and the same by `python SCRIPT.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from deeds import NEMO, environment, lines
from xms import HEAD

from nemo_run.run.store import scan

pytestmark = pytest.mark.usefixtures("home")

SCRIPT = (
    """
from absl import app, flags
"""
    + HEAD
    + """
N = flags.DEFINE_integer("n", 1, "How many jobs.")
WORD = flags.DEFINE_string("word", "hello", "What they say.")

def main(argv):
    with xm_local.create_experiment("launched") as experiment:
        for number in range(N.value):
            experiment.add(sh(f"echo {WORD.value} {argv[1:]} {number} >>trace"))

if __name__ == "__main__":
    app.run(main)
"""
)


def nemo_launch(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [NEMO, "launch", *words], env=environment(), capture_output=True, text=True, timeout=60, cwd=cwd
    )


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["launcher.py", "random.py", "test.py", "nemo_run.py", "xm.py", "json.py"])
def test_a_script_runs_whatever_module_it_is_called_like(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "scripts"
    folder.mkdir()
    written(folder / name, SCRIPT)
    done = nemo_launch(str(folder / name), "--", "--n=2", "--word=a b", "rest", cwd=tmp_path)
    assert (done.returncode, "Error" in done.stderr) == (0, False), done.stderr
    assert sorted(lines(tmp_path / "trace")) == ["a b [rest] 0", "a b [rest] 1"]


@pytest.mark.parametrize("how", ["nemo launch", "nemo launch --", "python"])
def test_flags_are_parsed_however_it_is_started(how: str, tmp_path: Path) -> None:
    path = written(tmp_path / "launcher.py", SCRIPT)
    if how == "python":
        command = [sys.executable, str(path), "--n=2", "x"]
        done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True)
    else:
        words = ["--"] if how.endswith("--") else []
        done = nemo_launch("launcher.py", *words, "--n=2", "x", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(lines(tmp_path / "trace")) == ["hello [x] 0", "hello [x] 1"]
    (folder,) = scan("launched")
    assert (folder / "main.py").read_text() == SCRIPT


def test_an_unknown_flag_is_named_and_nothing_starts(tmp_path: Path) -> None:
    written(tmp_path / "launcher.py", SCRIPT)
    done = nemo_launch("launcher.py", "--", "--nn=2", cwd=tmp_path)
    assert done.returncode != 0
    assert "Unknown command line flag 'nn'" in done.stderr
    assert list(scan()) == []


@pytest.mark.parametrize("how", ["nemo launch", "python"])
def test_flags_of_xmanager_are_heeded_or_named(how: str, tmp_path: Path) -> None:
    path = written(tmp_path / "launcher.py", SCRIPT)
    flags = ["--noxm_build_image_locally", "--xm_use_kaniko", "--xm_bazel_command=bazel", "--xm_gcs_path=/x"]
    command = [NEMO, "launch", str(path), "--"] if how == "nemo launch" else [sys.executable, str(path)]
    done = subprocess.run(
        [*command, *flags], env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for name in ("xm_build_image_locally", "xm_use_kaniko", "xm_gcs_path"):
        assert f"--{name} means nothing here" in done.stderr
    assert "xm_bazel_command" not in done.stderr
    assert lines(tmp_path / "trace") == ["hello [] 0"]


MAINS = {
    "async": "async def main(argv):\n    open('trace', 'w').write('ran')\n",
    "without arguments": "def main():\n    open('trace', 'w').write('ran')\n",
    "no function": "if True:\n    open('trace', 'w').write('ran')\n",
    "a main part alone": "if __name__ == '__main__':\n    open('trace', 'w').write('ran')\n",
    "imported": "from helper import main\n",
    "beside a main part": (
        "def main(argv):\n    open('trace', 'a').write('ran')\n\nif __name__ == '__main__':\n    main([])\n"
    ),
}


@pytest.mark.parametrize("kind", MAINS)
def test_a_main_of_any_kind_is_run_once(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "scripts"
    folder.mkdir()
    written(folder / "helper.py", MAINS["without arguments"])
    written(folder / "launcher.py", MAINS[kind])
    done = nemo_launch("scripts/launcher.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "trace").read_text() == "ran"


FAILING = """
def main(argv):
    with xm_local.create_experiment('x') as experiment:
        experiment.add(sh('exit 3'))
"""


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("def main(argv):\n    return 3\n", 3, ""),
        ("def main(argv):\n    raise ValueError('broken here')\n", 1, "broken here"),
        ("import sys\ndef main(argv):\n    sys.exit('no data')\n", 1, "no data"),
        ("main = 3\n", 1, "nemo: main of launcher.py is 3; define a function"),
        ("def main(:\n", 1, "nemo: cannot load"),
        (HEAD + FAILING, 1, "exit code 3"),
    ],
    ids=["a code", "an error", "a text", "no function", "no Python", "a failed job"],
)  # fmt: skip
def test_the_exit_code_tells_how_it_went(text: str, code: int, said: str, tmp_path: Path) -> None:
    written(tmp_path / "launcher.py", text)
    done = nemo_launch("launcher.py", cwd=tmp_path)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("launhcer.py", "no launch script 'launhcer.py'; did you mean 'launcher.py'?"),
        ("//pkg:target", "start it with bazel run //pkg:target"),
        (".", "no launch script '.'"),
    ],
)
def test_what_is_no_script_is_refused(script: str, said: str, tmp_path: Path) -> None:
    written(tmp_path / "launcher.py", SCRIPT)
    done = nemo_launch(script, cwd=tmp_path)
    assert (done.returncode, said in done.stderr) == (1, True), done.stderr
    assert "Traceback" not in done.stderr


def test_a_relative_path_in_a_script_starts_at_its_folder(tmp_path: Path) -> None:
    (tmp_path / "scripts" / "code").mkdir(parents=True)
    text = "def main():\n    print(xm.PythonContainer(xm.ModuleName('m'), path='code').path)\n"
    written(tmp_path / "scripts" / "launcher.py", HEAD + text)
    done = nemo_launch("scripts/launcher.py", cwd=tmp_path)
    assert done.stdout.strip() == str((tmp_path / "scripts" / "code").resolve())
