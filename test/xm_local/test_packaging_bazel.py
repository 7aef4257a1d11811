"""What Bazel builds is found and kept: by a real Bazel, and by the events that one wrote."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dockers import IMAGE, Containers

from nemo_run import xm
from nemo_run.errors import PackagingError
from nemo_run.xm_local.executables import ContainerImage, LocalBinary
from nemo_run.xm_local.packaging import package
from nemo_run.xm_local.packaging.bazel import completed, files_of, plain
from nemo_run.xm_local.specs import LocalSpec

RULES_JAVA = Path("/usr/share/bazel/rules/java")
#: Bazel wants these whatever is built, and Debian's own are too new for its Bazel.
RULES = ("library", "binary", "test", "import", "toolchain", "toolchain_suite", "proto_library")
BUILD = r"""
genrule(name = "gen", outs = ["gen.sh"], executable = True,
        cmd = "printf '#!/bin/sh\necho %s \"$$@\"\n' $$(cat $(location word.txt)) > $@", srcs = ["word.txt"])
genrule(name = "data", outs = ["data.txt"], cmd = "echo data > $@")
genrule(name = "two", outs = ["two_a", "two_b"], cmd = "touch $(OUTS)")
genrule(name = "image", srcs = ["saved"], outs = ["image.tar"], cmd = "cp $< $@")
genrule(name = "broken", outs = ["broken.sh"], cmd = "echo no such compiler >&2; exit 3")
sh_binary(name = "shb", srcs = ["shb.sh"], data = ["data.txt"])
py_binary(name = "pyb", srcs = ["pyb.py"], data = ["data.txt"])
cc_binary(name = "ccb", srcs = ["ccb.cc"])
alias(name = "ali", actual = ":shb")
"""
FILES = {
    "WORKSPACE": "",
    "BUILD": BUILD,
    "word.txt": "one",
    "saved": "",
    "shb.sh": '#!/bin/sh\necho sh $(cat "$0.runfiles/__main__/data.txt") "$@"\n',
    "pyb.py": "import os, sys\nhere = os.path.dirname(os.path.abspath(__file__))\n"
    "print('py', open(here + '/data.txt').read().strip(), *sys.argv[1:])\n",
    "ccb.cc": "#include <cstdio>\n"
    "#ifdef NDEBUG\n#define MODE 'o'\n#else\n#define MODE 'f'\n#endif\n"
    'int main(int c, char** v) { printf("cc %c %s\\n", MODE, v[1]); }\n',
    "pkg/BUILD": 'genrule(name = "pkg", outs = ["it"], executable = True, srcs = ["it.sh"],\n'
    '        cmd = "cp $< $@")\n',
    "pkg/it.sh": "#!/bin/sh\necho pkg\n",
    "rules_cc/WORKSPACE": "",
    "rules_cc/BUILD": "",
    "rules_cc/cc/BUILD": "",
    "rules_cc/cc/defs.bzl": "\n".join(f"def cc_{name}(**kw): native.cc_{name}(**kw)" for name in RULES)
    + "\ndef objc_library(**kw): native.objc_library(**kw)\n",
}


@contextlib.contextmanager
def _counted(folder: Path) -> Iterator[bool]:
    """Who holds it may change how many use the workspace; whether they are the first and the last."""
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not list(folder.glob("user-*"))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workspace whose one server serves all processes that test; the last one shuts it down."""
    if not (shutil.which("bazel") and RULES_JAVA.is_dir()):
        lacks = "needs bazel-bootstrap and bazel-rules-java (`make services` installs them)"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(lacks)
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "bazel"
    mine = folder / f"user-{os.getpid()}"
    with _counted(folder) as first:
        if first:
            _make_workspace(folder)
        mine.touch()
    yield folder / "workspace"
    with _counted(folder):
        mine.unlink()
    with _counted(folder) as last:
        if last:
            subprocess.run(["bazel", "shutdown"], cwd=folder / "workspace", check=True, capture_output=True)
            shutil.rmtree(folder / "root")


def _make_workspace(folder: Path) -> None:
    workspace = folder / "workspace"
    for name, text in FILES.items():
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        (workspace / name).write_text(text)
        (workspace / name).chmod(0o755)
    (workspace / ".bazelrc").write_text(
        f"startup --output_user_root={folder}/root --max_idle_secs=300\n"
        "build --spawn_strategy=local\n"
        f"common --override_repository=rules_cc={workspace}/rules_cc\n"
        f"common --override_repository=rules_java={RULES_JAVA}\n"
    )


@pytest.fixture
def workspace(shared: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that is launched from."""
    monkeypatch.chdir(shared)
    monkeypatch.delenv("BUILD_WORKSPACE_DIRECTORY", raising=False)
    return shared


def programs(*specs: xm.BazelBinary) -> list[str]:
    """The paths of what is built."""
    made = package([xm.Packageable(spec, LocalSpec()) for spec in specs])
    return [each.path for each in made if isinstance(each, LocalBinary)]


def says(path: str, *words: str) -> str:
    return subprocess.run([path, *words], capture_output=True, text=True, check=True, cwd="/").stdout.strip()


class TestBazel:
    def test_every_kind_of_program_runs_and_one_command_builds_those_with_equal_options(
        self, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
    ) -> None:
        (log := tmp_path / "log").touch()
        (counting := tmp_path / "counting").write_text(f'#!/bin/sh\necho "$1" >> {log}\nexec bazel "$@"\n')
        counting.chmod(0o755)
        monkeypatch.setattr(sys, "argv", ["launch.py", f"--xm_bazel_command={counting}"])
        monkeypatch.setenv("BUILD_WORKSPACE_DIRECTORY", str(workspace))
        monkeypatch.chdir(tmp_path)
        labels = ["//:gen", "//:shb", "//:pyb", "//:ccb", ":ali", "//pkg", "pkg"]
        plain_build = [xm.BazelBinary(label=label) for label in labels]
        optimised = xm.BazelBinary(label="//:ccb", bazel_args=["-c", "opt"])
        found = programs(*plain_build, optimised)
        assert [says(path, "a b") for path in found] == [
            "one a b", "sh data a b", "py data a b", "cc f a b", "sh data a b", "pkg", "pkg", "cc o a b",
        ]  # fmt: skip
        assert all(path.startswith(f"{home}/binaries/") for path in found)
        assert log.read_text().split().count("build") == 2

    def test_a_later_build_changes_nothing_of_what_was_packaged(self, workspace: Path) -> None:
        word = workspace / "word.txt"
        try:
            [first], _ = programs(xm.BazelBinary(label="//:gen")), word.write_text("two")
            [second] = programs(xm.BazelBinary(label="//:gen"))
            assert (says(first), says(second)) == ("one", "two")
        finally:
            word.write_text("one")
        assert programs(xm.BazelBinary(label="//:gen")) == [first]

    def test_an_images_tar_is_loaded_and_its_arguments_are_kept(
        self, workspace: Path, containers: Containers
    ) -> None:
        with open(workspace / "saved", "wb") as file:
            file.writelines(containers.client.images.get(IMAGE).save(named=True))
        packageable = xm.bazel_container(
            LocalSpec(), label="//:image.tar", args={"a": 1}, env_vars={"B": "2"}
        )
        [made] = package([packageable])
        assert isinstance(made, ContainerImage)
        assert made.digest == containers.client.images.get(IMAGE).id
        assert (made.name, made.args.to_list(), made.env_vars) == ("_image_tar", ["--a=1"], {"B": "2"})

    @pytest.mark.parametrize(
        ("label", "message"),
        [
            ("//:nope", "bazel cannot build //:nope: .*no such target '//:nope': target 'nope' not declared"),
            ("//:broken", "Executing genrule //:broken failed"),
            ("//:data", "//:data is no program: it gives data.txt; name a target that `bazel run` could run"),
        ],
    )
    def test_what_is_no_program_is_refused_with_bazels_words(
        self, workspace: Path, label: str, message: str
    ) -> None:
        with pytest.raises(PackagingError, match=message):
            programs(xm.BazelBinary(label=label))

    def test_several_files_are_no_image(self, workspace: Path) -> None:
        with pytest.raises(
            PackagingError, match="//:two gives 2 files, and an image is one; name the target"
        ):
            package([xm.Packageable(xm.BazelContainer("//:two"), LocalSpec())])

    def test_without_a_workspace_bazel_says_so(
        self, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("BUILD_WORKSPACE_DIRECTORY", raising=False)
        with pytest.raises(PackagingError, match=r"no Bazel workspace is here: .*launch from below one"):
            programs(xm.BazelBinary("//:x"))


def test_without_bazel_the_next_step_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PackagingError, match=r"bazel is not on PATH: install Bazel .*--xm_bazel_command="):
        programs(xm.BazelBinary("//:x"))


# --- events ---------------------------------------------------------------------------------------------


def event(kind: str, about: dict[str, Any], **content: Any) -> dict[str, Any]:
    return {"id": {kind: about}, **content}


def files(*names: str) -> list[dict[str, Any]]:
    return [{"name": name, "uri": f"file:///out/{name}"} for name in names]


#: As Bazel 4 and 7 write them, shortened.
EVENTS = [
    event("started", {}),
    event("namedSet", {"id": "0"}, namedSetOfFiles={"files": files("a"), "fileSets": [{"id": "1"}]}),
    event("namedSet", {"id": "1"}, namedSetOfFiles={"files": files("b"), "fileSets": [{"id": "2"}]}),
    event("namedSet", {"id": "2"}, namedSetOfFiles={"files": files("c", "a")}),
    event("namedSet", {"id": "3"}, namedSetOfFiles={"files": files("of-an-aspect")}),
    event(
        "targetCompleted",
        {"label": "@@//p:x"},
        completed={
            "outputGroup": [
                {"name": "default", "fileSets": [{"id": "0"}, {"id": "2"}]},
                {"name": "other", "fileSets": [{"id": "3"}]},
            ]
        },
    ),
    event(
        "targetCompleted",
        {"label": "@@//p:x", "aspect": "lint"},
        completed={"outputGroup": [{"name": "default", "fileSets": [{"id": "3"}]}]},
    ),
    event("targetCompleted", {"label": "//q:q"}, completed={"importantOutput": files("old")}),
    event("targetCompleted", {"label": "@dep//:y"}, completed={}),
]


def test_the_files_of_a_target_are_those_of_its_default_group_each_once() -> None:
    assert [file["name"] for file in files_of(EVENTS, "//p:x")] == ["a", "c", "b"]
    assert [file["name"] for file in files_of(EVENTS, "//q:q")] == ["old"]
    assert files_of(EVENTS, "@dep//:y") == []


@pytest.mark.parametrize(
    ("asked", "label"),
    [
        ("//p:x", "//p:x"), ("p:x", "//p:x"), ("@//p:x", "//p:x"), ("//q", "//q:q"), ("q", "//q:q"),
        ("@dep//:y", "@dep//:y"),
    ],
)  # fmt: skip
def test_labels_are_known_however_they_are_written(asked: str, label: str) -> None:
    assert completed(EVENTS, asked) == label


def test_a_pattern_of_several_targets_is_refused() -> None:
    with pytest.raises(PackagingError, match=r"//\.\.\. stands for no one target \(built: //p:x, //q:q"):
        completed(EVENTS, "//...")


def test_labels_of_other_repositories_stay_as_they_are() -> None:
    assert [plain(each) for each in ("@//a:b", "@@//a:b", "@c//a:b")] == ["//a:b", "//a:b", "@c//a:b"]
