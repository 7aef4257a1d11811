"""A typed function becomes a command: what a command line makes of it, and of its run."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cli_tasks
import pytest
from cli_tasks import Layer, Model, train
from hypothesis import given, settings
from hypothesis import strategies as st

import nemo_run as run
from nemo_run import cli
from nemo_run.cli import entrypoints
from nemo_run.cli.entrypoints import ENTRYPOINTS, Entrypoint, entrypoint_of
from nemo_run.cli.factories import REGISTRY
from nemo_run.cli.request import Request, make_request
from nemo_run.errors import ConfigError, NotFoundError, OverrideError


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """What the test registered is forgotten."""
    kept = dict(ENTRYPOINTS)
    with REGISTRY.scope():
        yield
    ENTRYPOINTS.clear()
    ENTRYPOINTS.update(kept)


def request_for(fn: Any, *overrides: str, **options: Any) -> Request:
    return make_request(entrypoint_of(fn), overrides=overrides, **options)


def pretrain(model: Model, lr: float = 0.1, runner: int = 1) -> None: ...


def launch(ctx: run.cli.RunContext, size: int = 1) -> None: ...


# --- the decorator --------------------------------------------------------------------------------------


def test_a_decorated_function_is_the_function_itself() -> None:
    assert cli.entrypoint(pretrain) is pretrain
    assert cli.entrypoint(name="go", namespace="llm", help="Go.")(pretrain) is pretrain
    assert cli.list_entrypoints("llm") == {"go": pretrain}
    assert cli.list_entrypoints()["llm"]["go"] is pretrain


def test_an_unknown_namespace_is_told_with_the_nearest() -> None:
    cli.entrypoint(namespace="llm")(pretrain)
    with pytest.raises(NotFoundError, match="no namespace of commands 'lm'; did you mean 'llm'"):
        cli.list_entrypoints("lm")


def test_an_experiment_without_a_context_is_refused() -> None:
    with pytest.raises(ConfigError, match="takes no RunContext; give it an argument"):
        cli.entrypoint(type="experiment")(pretrain)
    with pytest.raises(ConfigError, match="neither 'task' nor 'experiment'"):
        cli.entrypoint(type="both")(pretrain)  # type: ignore[call-overload]


# --- what counts more -----------------------------------------------------------------------------------


def test_defaults_count_less_than_the_factory_the_files_and_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "more.yaml"
    file.write_text("lr: 0.3\nname: file\n")

    @cli.factory(target=train)
    def usual_run(epochs: int = 5) -> run.Partial[None]:
        return run.Partial(train, model=run.Config(Model), epochs=epochs, lr=0.2, name="factory")

    entry = Entrypoint(fn=train, name="train", namespace="x", default_factory=usual_run)
    assert make_request(entry).task.lr == 0.2
    made = make_request(entry, files=[str(file)], overrides=["name=line"]).task
    assert (made.epochs, made.lr, made.name) == (5, 0.3, "line")
    other = make_request(entry, factory="usual_run(epochs=6)", overrides=["epochs+=1", "epochs*=2"]).task
    assert (other.epochs, other.name) == (14, "factory")


def test_the_order_on_the_command_line_is_the_order_of_application() -> None:
    made = request_for(
        pretrain, "model=llama3(size=8)", "model.size+=1", "model=llama3", "lr=1", "lr+=1", "lr+=2"
    )
    assert (made.task.model.size, made.task.lr) == (70, 4)


def test_a_file_may_hold_the_whole_task_and_its_run(tmp_path: Path) -> None:
    file = tmp_path / "whole.yaml"
    file.write_text("model:\n  _factory_: llama3(size=3)\nrun:\n  name: of-file\n  executor: LocalExecutor\n")
    made = request_for(pretrain, files=[str(file)])
    assert made.task.model.size == 3
    assert made.context().name == "of-file"


def test_an_export_is_read_back_by_yaml_and_by_factory(tmp_path: Path) -> None:
    from nemo_run.cli.export import export

    task = request_for(train, "model=llama3(size=3)", "lr=5").task
    for ending in ("yaml", "toml", "json"):
        file = str(export(task, str(tmp_path / f"all.{ending}")))
        assert request_for(train, files=[file]).task == task
        assert request_for(train, factory=f"@{file}").task == task
        assert request_for(train, "lr=6", files=[file]).task.lr == 6


def test_what_is_wrong_in_a_file_is_told_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("modle: 3\n")
    with pytest.raises(OverrideError, match=r"wrong\.yaml: unknown argument 'modle'; did you mean 'model'"):
        request_for(pretrain, files=[str(file)])
    file.write_text("[1, 2]\n")
    with pytest.raises(OverrideError, match=r"wrong\.yaml: there are no names and values in it"):
        request_for(pretrain, files=[str(file)])


# --- what is set, and what has to be --------------------------------------------------------------------


def test_an_argument_that_is_required_is_asked_for_with_what_fits() -> None:
    with pytest.raises(
        OverrideError, match=r"model is not set; write model=VALUE, for instance model=\w+"
    ) as told:
        request_for(pretrain)
    assert "llama3" in told.value.choices


def test_a_factory_that_is_the_default_stands_where_nothing_is_set() -> None:
    made = request_for(train, "model=llama3")
    assert made.task.maybe == run.Config(Model, size=5)
    assert request_for(train, "model=llama3", "maybe=None").task.maybe is None


def test_arguments_may_be_called_like_settings() -> None:
    def odd(runner: int = 1, executor: str = "", plugins: int = 0, run: int = 2) -> None: ...

    made = request_for(odd, "runner=3", "executor=x=y", "plugins=4", "run=5", "run.name=z")
    assert vars(made.task)["__arguments__"] == {"runner": 3, "executor": "x=y", "plugins": 4, "run": 5}
    assert made.context().name == "z"


def test_the_context_is_not_for_the_command_line() -> None:
    cli.entrypoint(type="experiment")(launch)
    with pytest.raises(OverrideError, match="ctx is not for the command line"):
        request_for(launch, "ctx.name=3")


@pytest.mark.parametrize("name", ["nothing", "recipe(", "recipe(epochs=x)"])
def test_an_unknown_factory_of_the_whole_is_refused(name: str) -> None:
    with pytest.raises(OverrideError):
        request_for(train, factory=name)


# --- where and how --------------------------------------------------------------------------------------


def test_the_default_executor_is_this_machine() -> None:
    assert type(request_for(pretrain, "model=llama3").context().executor) is run.LocalExecutor


def test_executors_of_every_kind_are_found_by_their_factories() -> None:
    @cli.factory
    def box() -> run.Config[run.DockerExecutor]:
        return run.Config(run.DockerExecutor, container_image="busybox")

    @cli.factory
    def cluster(nodes: int = 1) -> run.SlurmExecutor:
        return run.SlurmExecutor(account="a", nodes=nodes)

    docker = request_for(pretrain, "model=llama3", "run.executor=box").context().executor
    assert isinstance(docker, run.DockerExecutor)
    words = ("run.executor=cluster(nodes=2)", "run.executor.nodes+=1", "run.executor.env_vars={A: 'b=c'}")
    slurm = request_for(pretrain, "model=llama3", *words).context().executor
    assert isinstance(slurm, run.SlurmExecutor)
    assert (slurm.nodes, slurm.env_vars) == (3, {"A": "b=c"})


def test_executors_of_ours_are_known_by_their_classes() -> None:
    words = ("run.executor=LocalExecutor(ntasks_per_node=2)", "run.executor.env_vars.A=x")
    executor = request_for(pretrain, "model=llama3", *words).context().executor
    assert (executor.ntasks_per_node, executor.env_vars) == (2, {"A": "x"})
    with pytest.raises(
        OverrideError, match=r"run\.executor: 'LocalExecuter' .* did you mean 'LocalExecutor'"
    ):
        request_for(pretrain, "model=llama3", "run.executor=LocalExecuter")
    with pytest.raises(OverrideError, match=r"'run\.executor\.nods'; did you mean"):
        request_for(pretrain, "model=llama3", "run.executor=SlurmExecutor", "run.executor.nods=2")
    with pytest.raises(OverrideError, match=r"'run\.excutor'; did you mean 'executor'"):
        request_for(pretrain, "model=llama3", "run.excutor=LocalExecutor")


def test_a_default_is_not_changed_by_what_is_typed() -> None:
    executor, task = run.Config(run.LocalExecutor), run.Config(train, model=run.Config(Model))
    entry = Entrypoint(fn=train, name="t", namespace="x", default_executor=executor, default_factory=task)
    made = make_request(entry, overrides=["run.executor.retries=2", "model.size=3"])
    assert (made.settings.executor.retries, made.task.model.size) == (2, 3)
    assert executor == run.Config(run.LocalExecutor)
    assert task.model == run.Config(Model)
    assert isinstance(made.task, run.Partial)


class Tagger(run.Plugin):
    tag: str

    def __init__(self, tag: str = "t") -> None:
        self.tag = tag


def tagger(tag: str = "t") -> run.Config[Tagger]:
    return run.Config(Tagger, tag=tag)


def taggers() -> list[run.Config[run.Plugin]]:
    return [run.Config(Tagger, tag="all"), run.Config(Tagger)]


@pytest.mark.parametrize(
    ("words", "tags"),
    [
        (["run.plugins=tagger"], ["t"]),
        (["run.plugins=tagger(tag=a)", "run.plugins[0].tag+=b"], ["ab"]),
        (["run.plugins=[tagger, tagger(tag=b)]"], ["t", "b"]),
        (["run.plugins=taggers"], ["all", "t"]),
        (["run.plugins=taggers", "run.plugins+=tagger(tag=c)"], ["all", "t", "c"]),
        (["run.plugins=[]"], []),
    ],
)
def test_plugins_are_found_by_their_factories(words: list[str], tags: list[str]) -> None:
    cli.factory(tagger)
    cli.factory(taggers)
    made = request_for(pretrain, "model=llama3", *words).context()
    assert [plugin.tag for plugin in made.plugins] == tags  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "default",
    [run.LocalExecutor(ntasks_per_node=2), run.Config(run.LocalExecutor, ntasks_per_node=2), "pair", None],
)
def test_defaults_of_the_decorator_come_in_many_forms(default: Any) -> None:
    @cli.factory
    def pair() -> run.Config[run.LocalExecutor]:
        return run.Config(run.LocalExecutor, ntasks_per_node=2)

    cli.factory(tagger)
    entry = Entrypoint(
        fn=pretrain,
        name="p",
        namespace="x",
        default_executor=default or pair,
        default_plugins=["tagger", Tagger("b")],
    )
    made = make_request(entry, overrides=["model=llama3"]).context()
    assert made.executor.ntasks_per_node == 2  # type: ignore[attr-defined]
    assert [plugin.tag for plugin in made.plugins] == ["t", "b"]  # type: ignore[attr-defined]


def test_a_context_launches_as_the_command_line_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    context = cli.RunContext(name="x", executor=run.LocalExecutor(), dryrun=True)
    with run.Experiment("x", base_dir=tmp_path) as experiment:
        experiment.add(run.Script(inline="true"), executor=context.executor, name="job")
        assert context.launch(experiment) == {}
    assert "job job of experiment x_" in capsys.readouterr().out
    context.dryrun, context.direct = False, True
    with run.Experiment("x", base_dir=tmp_path) as experiment:
        experiment.add(run.Partial(copy.copy, x=3), executor=context.executor, name="job")
        assert context.launch(experiment, sequential=True) == {"job": 3}


# --- bad input ------------------------------------------------------------------------------------------

KEYS = [
    "run.executor", "run.executor.nodes", "run.executor.env_vars", "run.executor.env_vars.A",
    "run.executor[0]", "run.executor.packager", "run.executor.__class__", "run.plugins",
    "run.plugins[0]", "run.plugins[0].a", "run.name", "run.detach", "run.x", "run.", "run", ".run",
    "run.__init__", "run.skip_confirmation", "ctx", "model", "model.size", "model.layers[0].dim",
    "maybe.size", "hook",
]  # fmt: skip
VALUES = [
    "1", "true", "None", "SlurmExecutor", "SlurmExecutor(account=a)", "DockerExecutor()", "LocalExecutor(",
    "LocalExecutor(x=1)", "[", "[]", "[a]", "{}", "{a: 1}", "@x.yaml", "@", "os.system", "llama3",
    "llama3(size=2)", "'a'", "((", "three", "Packager()", "é\ud800", "",
]  # fmt: skip


@given(st.lists(st.tuples(*map(st.sampled_from, (KEYS, ["=", "+=", "-=", "|=", ""], VALUES))), max_size=4))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_whatever_is_typed_is_a_request_or_an_override_error(words: list[tuple[str, str, str]]) -> None:
    before = list(cli_tasks.RAN)
    try:
        made = request_for(train, "model=llama3", *map("".join, words))
    except OverrideError:
        return
    finally:
        assert set(cli_tasks.RAN[len(before) :]) <= {"llama3"}
    with contextlib.suppress(ConfigError):  # an executor that lacks something
        made.context()


# --- lazily ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [train, "cli_tasks.train"])
def test_a_lazy_entrypoint_applies_later_what_was_done_to_it(target: Any) -> None:
    task = cli.LazyEntrypoint(target, overwrites=["model=llama3(size=8)"])
    task.model.size *= 2
    task.model.layers[0].dim = 4
    task.model.layers += [run.Config(Layer, dim=5)]
    task.lr = 3.5
    assert task.is_lazy is isinstance(target, str)
    made = copy.deepcopy(task).resolve()
    assert made.model.size == 16
    assert [layer.dim for layer in made.model.layers] == [4, 8, 5]
    assert made.lr == 3.5


def test_a_lazy_entrypoint_is_a_task() -> None:
    task = cli.LazyEntrypoint("copy.copy", overwrites=["x=[1, 2]"])
    assert run.run(task) == [1, 2]
    with run.Experiment("x") as experiment:
        assert experiment.add(task, name="lazy") == "lazy"
        experiment.dryrun(log=False)


def test_a_lazy_entrypoint_takes_files_and_factories(tmp_path: Path) -> None:
    by_text = cli.LazyEntrypoint(train, factory="recipe", yaml="lr: 3\nmodel: {size: 2}\n").resolve()
    assert (by_text.epochs, by_text.lr, by_text.model.size) == (7, 3, 2)
    (tmp_path / "a.yaml").write_text("model: llama3\nrun: {name: n}\n")
    context = cli.RunContext(executor=run.LocalExecutor())
    task = cli.LazyEntrypoint(train, yaml=tmp_path / "a.yaml", overwrites=["run.detach=yes"])
    assert task.resolve(context).model.size == 70
    assert (context.name, context.detach) == ("n", True)


@pytest.mark.parametrize("target", ["no_such_module.train", "cli_tasks.no_such", "nothing here"])
def test_a_lazy_entrypoint_that_is_not_there_is_told_when_it_is_needed(target: str) -> None:
    with pytest.raises((ConfigError, NotFoundError)):
        cli.LazyEntrypoint(target).resolve()


def test_a_change_that_does_not_fit_is_told_with_its_key() -> None:
    task = cli.LazyEntrypoint(train, overwrites=["model=llama3"])
    task.model.sise = 3
    with pytest.raises(OverrideError, match=r"unknown argument 'model\.sise'; did you mean 'size'"):
        task.resolve()


def test_what_nemo_run_starts_is_held_back_while_a_file_is_loaded() -> None:
    with entrypoints.holding_back() as started:
        cli.main(pretrain, default_executor="LocalExecutor")
    assert [(each.fn, each.default_executor) for each in started] == [(pretrain, "LocalExecutor")]
