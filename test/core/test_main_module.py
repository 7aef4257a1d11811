"""A launching script gives a job its definitions, and never launches again there."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from nemo_run.core.main_module import definitions, launch_source, notebook_source

SCRIPT = '''\
"""What it is."""
from __future__ import annotations
import os
try:
    import not_here_at_all
except ImportError:
    not_here_at_all = None
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import not_here_either

RATE = float(os.environ.get("RATE", 1))
TABLE = {}
TABLE["rate"] = RATE
TOTAL = 0
TOTAL += 1
UNUSED = LAUNCHED.append("unused")
with open(os.devnull) as nothing:
    TEXT = nothing.read()

def deco(fn):
    return fn

def helper(value: Kind):
    return value * RATE

@deco
def train(steps=len(TABLE)):
    ünïcödé = "\u2028"
    return helper(steps) + later(), TOTAL, TEXT

Kind = int
later = lambda: 10; LAUNCHED.append("same line")

@UNUSED
def decorated(): ...

class Base(UNUSED):
    pass

class Derived(Base):
    inner = [value for value in (1,)]

class Fine:
    rate = RATE

for step in range(2):
    LAUNCHED.append(step)
if RATE:
    LAUNCHED.append("if")
assert not LAUNCHED.append("assert")
LAUNCHED.append(train)
'''

ONE_A_LINE = SCRIPT.replace('; LAUNCHED.append("same line")', "")


def executed(source: str) -> dict[str, Any]:
    scope: dict[str, Any] = {"LAUNCHED": [], "__name__": "__main__"}
    exec(compile(source, "main.py", "exec"), scope)
    return scope


class TestWithoutGuard:
    def test_tasks_work_and_nothing_is_launched(self) -> None:
        scope = executed(definitions(SCRIPT, {"train"}))
        assert scope["train"]() == (11.0, 1, "")
        assert scope["LAUNCHED"] == []
        assert scope["TABLE"] == {"rate": 1.0}

    def test_only_what_can_be_evaluated_stays(self) -> None:
        scope = executed(definitions(SCRIPT, {"train"}))
        assert "Fine" in scope
        assert not {"UNUSED", "decorated", "Base", "Derived", "step"} & set(scope)

    def test_a_needed_name_brings_what_it_is_made_from(self) -> None:
        text = definitions(ONE_A_LINE, {"Derived"})
        assert 'UNUSED = LAUNCHED.append("unused")' in text
        assert "class Base(UNUSED)" in text
        assert "class Fine" not in text
        assert "RATE = " not in text

    def test_without_names_every_function_is_needed(self) -> None:
        text = definitions("A = 1\nB = 2\ndef f(): return A\nprint(B)\n")
        assert "A = 1" in text
        assert "B = 2" not in text

    def test_dotted_names_need_their_first_part(self) -> None:
        assert "X = 1" in definitions("X = 1\nclass A:\n    def f(self): return X\n", {"A.f"})

    def test_lines_stay_where_they_were(self) -> None:
        before = {
            node.name: node.lineno for node in ast.parse(ONE_A_LINE).body if isinstance(node, ast.FunctionDef)
        }
        after = {
            node.name: node.lineno
            for node in ast.parse(definitions(ONE_A_LINE, {"train"})).body
            if isinstance(node, ast.FunctionDef)
        }
        assert after == {name: before[name] for name in ("deco", "helper", "train")}

    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    def test_any_line_end_will_do(self, end: str) -> None:
        text = definitions(end.join(["x = 'é'; y = 1", "run(x)", "", "def f():", "    return x, y"]), {"f"})
        assert executed(text)["f"]() == ("é", 1)

    def test_statements_that_share_a_line_are_told_apart(self) -> None:
        scope = executed(definitions("LAUNCHED.append(1); b = 1\ndef f(): return b\n", {"f"}))
        assert (scope["f"](), scope["LAUNCHED"]) == (1, [])

    def test_names_in_lazy_annotations_are_kept(self) -> None:
        script = "from __future__ import annotations\nKind = int\ndef f(x: Kind): ...\n"
        assert "Kind = int" in definitions(script, {"f"})

    def test_local_names_are_not_the_scripts(self) -> None:
        script = (
            "for lr in (1, 2):\n    LAUNCHED.append(lr)\ndef f(lr): return [x for x in (lr,)]\nx = go()\n"
        )
        assert definitions(script, {"f"}).strip() == "def f(lr): return [x for x in (lr,)]"

    def test_what_is_not_python_is_a_syntax_error(self) -> None:
        with pytest.raises(SyntaxError):
            definitions("def", {"f"})


class TestWithGuard:
    GUARDED = "if __name__ == '__main__':\n    f()\n    go()\n"
    SCRIPT = f"x = 1\nprint_me = [x]\ndef f():\n    return x\n\n{GUARDED}z = 3\n"

    def test_only_the_guarded_part_goes(self) -> None:
        text = definitions(self.SCRIPT, {"f"})
        assert text == self.SCRIPT.replace(self.GUARDED, "\n\n\n")

    def test_other_ways_to_write_it_count_too(self) -> None:
        assert "go" not in definitions('a = 1\nif "__main__" == __name__ and a: go()\nelse: a = 2\n', set())


class TestSource:
    def test_a_scripts_source_is_its_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        script = tmp_path / "x.py"
        script.write_bytes("# coding: latin-1\nx = 'é'\n".encode("latin-1"))
        main = ModuleType("__main__")
        main.__file__ = str(script)
        monkeypatch.setitem(sys.modules, "__main__", main)
        assert launch_source() == "# coding: latin-1\nx = 'é'\n"

    @pytest.mark.parametrize("file", [None, "/not/there.py", "<stdin>"])
    def test_without_a_file_there_is_none(self, file: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
        main = ModuleType("__main__")
        main.__file__ = file
        monkeypatch.setitem(sys.modules, "__main__", main)
        assert launch_source() is None

    def test_code_on_the_command_line_has_none(self) -> None:
        code = "from nemo_run.core.main_module import launch_source; print(launch_source())"
        argv = [sys.executable, "-c", code]
        done = subprocess.run(argv, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
        assert done.stdout == "None\n"


CELLS = [
    "",
    "%matplotlib inline\nimport os\n!ls -l\nfiles = !ls\nos.path?",
    "def f(n):\n    if n:\n        !ls\n    return n % 3\n",
    "%%bash\nrm -rf x",
    "%%time\nz = 1",
    "this is no python",
    "f(5)",
]


def test_a_notebooks_cells_become_a_script() -> None:
    source = notebook_source(CELLS)
    scope = executed(definitions(source, {"f", "z"}))
    assert scope["f"](5) == 2
    assert scope["z"] == 1
    assert "rm -rf" not in source
    assert "this is no python" not in source
    assert "    pass  # !ls" in source


def test_a_running_notebooks_cells_are_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shell:
        user_ns: ClassVar = {"In": CELLS}

    ipython = ModuleType("IPython")
    ipython.get_ipython = Shell  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert launch_source() == notebook_source(CELLS)
