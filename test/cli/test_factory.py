"""Factories are registered by what they make, and found by type, function, argument and name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cli_tasks
import pytest
from cli_tasks import BigModel, Layer, Model, Optimizer, train

import nemo_run as run
from nemo_run import cli
from nemo_run.cli.factories import REGISTRY, Registry
from nemo_run.errors import ConfigError, NotFoundError, OverrideError


@pytest.fixture(autouse=True)
def registry() -> Iterator[Registry]:
    """The registry, which forgets at the end what the test registered."""
    with REGISTRY.scope() as registry:
        yield registry


def names(kind: Any, owner: Any = None, argument: str = "") -> set[str]:
    return set(REGISTRY.fitting(kind, owner, argument))


def test_a_factory_is_the_function_itself() -> None:
    def small() -> run.Config[Model]:
        return run.Config(Model, size=1)

    assert cli.factory(small) is small
    assert cli.factory(name="tiny")(small) is small
    assert cli.resolve_factory(Model, "tiny") is cli.resolve_factory(Model, "small") is small
    assert small() == run.Config(Model, size=1)


@pytest.mark.parametrize("kind", [Model, run.Config[Model], run.Partial[Model], Model | None, Model | str])
def test_factories_fit_what_is_annotated_with_their_type(kind: Any) -> None:
    assert names(kind) == {"llama3", "big-one", "broken"}


def test_a_factory_fits_where_its_type_or_one_above_it_is_wanted() -> None:
    assert names(BigModel) == {"big-one"}
    assert names(list[Layer]) == {"three"}
    assert names(Layer) == {"wide"}
    assert names(Optimizer) == names(str) == names(Any) == set()


def test_executors_of_every_kind_fit_where_an_executor_is_wanted() -> None:
    @cli.factory
    def box() -> run.Config[run.DockerExecutor]:
        return run.Config(run.DockerExecutor, container_image="busybox")

    @cli.factory
    def here() -> run.LocalExecutor:
        return run.LocalExecutor(ntasks_per_node=2)

    def launch(executor: run.Executor) -> None: ...

    assert names(run.Executor) == {"box", "here"}
    assert cli.parse_partial(launch, "executor=box", "executor.container_image=alpine") == run.Partial(
        launch, executor=run.Config(run.DockerExecutor, container_image="alpine")
    )
    assert cli.parse_partial(launch, "executor=here").executor.ntasks_per_node == 2


def test_a_factory_for_one_argument_fits_nowhere_else() -> None:
    assert names(Model | None, train, "maybe") == {"llama3", "big-one", "broken", "usual"}
    assert names(int, train, "epochs") == {"few"}
    assert names(int, train, "runner") == set()

    @cli.factory(target=Model, target_arg="size", name="llama3")
    def size() -> int:
        return 5

    assert REGISTRY.fitting(int, BigModel, "size")["llama3"].fn is size
    assert cli.parse_partial(train, "model=big-one", "model.size=llama3").model.size == 5


def test_a_factory_can_be_for_a_whole_function() -> None:
    assert cli.list_factories(train) == [cli_tasks.recipe]
    assert cli.resolve_factory(train, "recipe")() == run.Partial(train, epochs=7)


def test_a_namespace_is_a_name_to_look_up() -> None:
    @cli.factory(namespace="my.models")
    def mine() -> Any:
        return run.Config(Model)

    assert cli.resolve_factory("my.models", "mine") is mine
    assert cli.list_factories("my.models") == [mine]
    assert cli.list_factories("cli_tasks.Layer") == [cli_tasks.wide]
    assert set(cli.list_factories()) >= {mine, cli_tasks.wide, cli_tasks.usual}


def test_the_newest_of_a_name_counts() -> None:
    @cli.factory(name="llama3")
    def newer() -> run.Config[Model]:
        return run.Config(Model, size=2)

    assert cli.resolve_factory(Model, "llama3") is newer
    assert cli.parse_partial(train, "model=llama3").model.size == 2


def test_what_a_block_registered_is_forgotten() -> None:
    with REGISTRY.scope():

        @cli.factory
        def passing() -> run.Config[Optimizer]:
            return run.Config(Optimizer)

        assert names(Optimizer) == {"passing"}
    assert names(Optimizer) == set()


def test_an_unknown_factory_is_told_with_the_nearest() -> None:
    with pytest.raises(
        NotFoundError, match=r"no factory for cli_tasks\.Model: 'lama3'; did you mean 'llama3'\?"
    ) as told:
        cli.resolve_factory(Model, "lama3")
    assert set(told.value.known) == {"llama3", "big-one", "broken"}


def test_a_factory_that_says_too_little_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"does not say what it makes; annotate what it returns"):
        cli.factory(lambda: 3)
    with pytest.raises(ConfigError, match=r"target_arg='a' needs the target="):
        cli.factory(target_arg="a")
    with pytest.raises(ConfigError, match=r"is_target_default=True needs"):
        cli.factory(target=Model, is_target_default=True)
    with pytest.raises(ConfigError, match=r"Model has no argument 'sise'; did you mean 'size'"):
        cli.factory(target=Model, target_arg="sise")


def test_a_factory_says_where_it_stands() -> None:
    lines = Path(cli_tasks.__file__).read_text(encoding="utf-8").splitlines()
    for name, kind in {"llama3": Model, "wide": Layer}.items():
        file, _, line = REGISTRY.fitting(kind)[name].where.rpartition(":")
        assert file.endswith("cli_tasks.py")
        assert f"def {name}" in "".join(lines[int(line) - 1 : int(line) + 2])


def test_what_a_factory_raises_is_told_with_its_place() -> None:
    with pytest.raises(
        OverrideError, match=r"broken \(\S+:\d+\) failed: RuntimeError: no model of 3"
    ) as told:
        cli.parse_partial(train, "model=broken(3)")
    assert isinstance(told.value.__cause__.__cause__, RuntimeError)  # type: ignore[union-attr]


def test_arguments_of_a_factory_are_read_by_its_annotations() -> None:
    @cli.factory
    def joined(parts: list[Model], *more: int, **names: float) -> run.Config[Model]:
        return run.Config(Model, size=sum(part.size for part in parts) + sum(more), env=names)

    made = cli.parse_partial(train, "model=joined([llama3(1), Model(size=2)], 3, 4, a=1)").model
    assert made == run.Config(Model, size=10, env={"a": 1.0})


def test_a_config_of_ones_own_is_changed_in_place() -> None:
    cfg = run.Config(Model)
    assert cli.parse_cli_args(Model, ["size=3"], cfg) is cfg
    assert cfg.size == 3
    assert cli.parse_cli_args(Model, ["size=3"], run.Config) == cfg
    assert cli.parse_config(Model, "size=3") == cfg


def test_sources_are_asked_once_and_only_when_a_name_may_be_theirs() -> None:
    asked = []
    registry = Registry([lambda: asked.append("source")])
    assert (
        registry.fitting(int) == registry.fitting(list[str] | None) == registry.fitting(tuple[int, ...]) == {}
    )
    assert asked == []
    registry.fitting(dict[str, Model | None])
    registry.all()
    assert asked == ["source"]


PACKAGE = """
import nemo_run as run
from cli_tasks import Model

@run.cli.factory
def packaged() -> run.Config[Model]:
    return run.Config(Model, size=11)
"""


def test_installed_packages_offer_factories(tmp_path: Path) -> None:
    (tmp_path / "offering.py").write_text(PACKAGE)
    (tmp_path / "broken_offer.py").write_text("raise RuntimeError('not today')")
    info = tmp_path / "offering-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: offering\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[nemo_run.cli]\na = broken_offer\nb = offering\n")
    parse = "run.cli.parse_partial(cli_tasks.train, 'model=packaged')"
    code = f"import nemo_run as run, cli_tasks; print({parse}.model.size)"
    path = f"{tmp_path}:{Path(cli_tasks.__file__).parent}"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "11\n"
    assert (
        "cannot load 'broken_offer' of the entry points nemo_run.cli: RuntimeError: not today" in done.stderr
    )


def test_the_names_of_the_command_line_are_had_without_fiddle() -> None:
    code = (
        "import sys, nemo_run; nemo_run.cli.factory; print('fiddle' in sys.modules, 'typer' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
    code = "import sys, nemo_run; print(any(name.startswith('nemo_run.cli') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = cli.nothing
