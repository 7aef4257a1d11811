"""Packageables, jobs and groups: shorteners, names, copies, arguments, and what is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from xm_samples import PLACE, PROGRAM, Place, Spec, job

import nemo_run as run
from nemo_run import xm
from nemo_run.xm import job_operators

MODULE = xm.ModuleName("train")
GIVEN: dict[str, Any] = {"args": {"a": 1}, "env_vars": {"B": "c"}}

SHORTENERS: list[tuple[Callable[..., xm.Packageable], dict[str, Any], xm.ExecutableSpec]] = [
    (xm.binary, {"path": "/bin/ls"}, xm.Binary("/bin/ls")),
    (xm.bazel_binary, {"label": "//a:b"}, xm.BazelBinary("//a:b")),
    (xm.bazel_binary, {"label": ":b", "bazel_args": ("-c", "opt")}, xm.BazelBinary(":b", [], ["-c", "opt"])),
    (xm.container, {"image_path": "a:b"}, xm.Container("a:b")),
    (xm.container, {"path": "a:b"}, xm.Container("a:b")),
    (
        xm.bazel_container,
        {"label": "//a:b.tar", "bazel_args": ["-k"]},
        xm.BazelContainer("//a:b.tar", ["-k"]),
    ),
    (xm.python_container, {"entrypoint": MODULE}, xm.PythonContainer(MODULE)),
    (
        xm.python_container,
        {"entrypoint": MODULE, "path": "/a", "base_image": "b", "docker_instructions": ["RUN c"]},
        xm.PythonContainer(MODULE, "/a", "b", ["RUN c"]),
    ),
    (xm.dockerfile_container, {}, xm.Dockerfile()),
    (xm.dockerfile_container, {"path": "/a", "dockerfile": "/b"}, xm.Dockerfile("/a", "/b")),
]


@pytest.mark.parametrize(("shortener", "fields", "spec"), SHORTENERS)
def test_a_shortener_is_the_packageable_it_stands_for(
    shortener: Callable[..., xm.Packageable], fields: dict[str, Any], spec: xm.ExecutableSpec
) -> None:
    whole = xm.Packageable(executable_spec=spec, executor_spec=Spec(), **GIVEN)
    assert shortener(executor_spec=Spec(), **fields, **GIVEN) == whole
    assert shortener(Spec("elsewhere"), **fields, **GIVEN) != whole
    assert shortener(Spec(), **fields) != whole


def test_arguments_and_environment_are_kept_as_ones_own() -> None:
    args, env = {"a": 1}, {"N": 1, "P": "x"}
    packageable = xm.binary(Spec(), "/a", args=args, env_vars=env)
    args["a"], env["N"] = 2, 2
    assert packageable.args.to_argv() == ["--a=1"]
    assert packageable.env_vars == {"N": "1", "P": "x"}
    secret = run.Secret("TOKEN")
    assert job(env_vars={"T": secret}).env_vars == {"T": secret}
    assert job().env_vars == {} == xm.binary(Spec(), "/a").env_vars


ENVIRONMENTS: list[tuple[Any, type[Exception], str]] = [
    ({"1A": "x"}, ValueError, "'1A' is no name of a variable; use letters, digits and _"),
    ({"a-b": "x"}, ValueError, "'a-b' is no name of a variable"),
    ({"A\n": "x"}, ValueError, "is no name of a variable"),
    ({3: "x"}, ValueError, "3 is no name of a variable"),
    ({"A": None}, ValueError, "the value of 'A' is no text: None"),
    ({"A": ["x"]}, ValueError, r"the value of 'A' is no text: \['x'\]"),
    ({"A": "a\0b"}, ValueError, "the value of 'A' holds a NUL"),
    (["A=x"], TypeError, r"is a dict of names and values, not \['A=x'\]"),
]


@pytest.mark.parametrize(("env", "kind", "message"), ENVIRONMENTS)
def test_an_environment_that_no_process_can_have_is_refused(
    env: Any, kind: type[Exception], message: str
) -> None:
    for make in (lambda: xm.binary(Spec(), "/a", env_vars=env), lambda: job(env_vars=env)):
        with pytest.raises(kind, match=f"env_vars of .*{message}") as caught:
            make()
        assert isinstance(caught.value, run.ConfigError)


MISUSE: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: xm.Packageable("/bin/ls", Spec()), TypeError, "must be an xm.ExecutableSpec, not '/bin/ls'"),
    (lambda: xm.Packageable(xm.Binary("/a"), PLACE), TypeError, r"executor_spec .* write Place.Spec\(\)"),
    (lambda: xm.Packageable(xm.Binary("/a"), Place), TypeError, r"write Place.Spec\(\)"),
    (lambda: xm.Packageable(xm.Binary("/a"), "here"), TypeError, "must be an xm.ExecutorSpec"),
    (lambda: xm.binary(Spec(), "/a", args="--x"), ValueError, r"not the text '--x': write \['--x'\]"),
    (lambda: xm.Job(xm.Binary("/a"), PLACE), TypeError, "which is not packaged yet: .*experiment.package"),
    (lambda: xm.Job([PROGRAM], PLACE), TypeError, r"is a list; package\(\) gives one .*\[executable\] = "),
    (lambda: xm.Job("/bin/ls", PLACE), TypeError, "executable of Job must be an xm.Executable, not"),
    (lambda: xm.Job(PROGRAM, Place), TypeError, "executor of Job must be an xm.Executor"),
    (lambda: job(args="--x"), ValueError, r"write \['--x'\]"),
    (lambda: xm.JobGroup(job()), TypeError, r"JobGroup takes jobs by name, JobGroup\(agent=job\)"),
    (lambda: xm.JobGroup(a=PROGRAM), TypeError, "'a' of JobGroup is an executable; write xm.Job"),
    (
        lambda: xm.JobGroup(a=lambda unit: None),
        ValueError,
        "a job generator is an async function; write `async def`",
    ),
    (lambda: xm.JobGroup(a=None), TypeError, "'a' of JobGroup must be an xm.Job, an xm.JobGroup or"),
]


@pytest.mark.parametrize(("make", "kind", "message"), MISUSE, ids=[message for _, _, message in MISUSE])
def test_misuse_is_refused_where_it_is_written(
    make: Callable[[], Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        make()
    assert isinstance(caught.value, run.ConfigError)


def test_an_executor_must_say_what_packaging_needs() -> None:
    class Incomplete(xm.Executor):
        pass

    with pytest.raises(TypeError, match=r"abstract.*Spec"):
        Incomplete()  # type: ignore[abstract]


# --- Generators -----------------------------------------------------------------------------------------


async def generate(unit: Any, **args: Any) -> None:
    """Adds nothing."""


class Generator:
    """Called like an async function."""

    async def __call__(self, unit: Any) -> None:
        """Adds nothing."""


@pytest.mark.parametrize("generator", [generate, functools.partial(generate, a=1), Generator()])
def test_async_functions_and_what_is_called_like_one_are_generators(generator: Any) -> None:
    assert xm.jobs.is_job_generator(generator)
    assert job_operators.with_args(generator, {"anything": 1}) is generator


@pytest.mark.parametrize("other", [None, print, lambda unit: None, Generator, job()])
def test_other_things_are_no_generators(other: Any) -> None:
    assert not xm.jobs.is_job_generator(other)


# --- Names and copies -----------------------------------------------------------------------------------


def nested() -> xm.JobGroup:
    """Three jobs on two levels."""
    return xm.JobGroup(a=job(), inner=xm.JobGroup(b=job("mine"), c=job()))


def test_jobs_without_a_name_get_one_from_where_they_stand() -> None:
    group, single = nested(), job()
    job_operators.populate_job_names(group)
    job_operators.populate_job_names(single)
    assert [inner.name for inner in job_operators.flatten_jobs(group)] == ["a", "mine", "inner_c"]
    assert single.name == "true"
    job_operators.populate_job_names(generate)
    assert job("", args=["x"]).name is None


def test_two_jobs_of_one_name_are_refused() -> None:
    group = xm.JobGroup(a_b=job(), a=xm.JobGroup(b=job()))
    with pytest.raises(ValueError, match="two jobs are named 'a_b'; give each a name of its own"):
        job_operators.get_jobs(group)
    assert [inner.name for inner in job_operators.get_jobs(nested())] == ["a", "mine", "inner_c"]


def test_a_copy_has_jobs_of_its_own() -> None:
    group = nested()
    copied = job_operators.shallow_copy_job_type(group)
    assert copied == group
    job_operators.populate_job_names(copied)
    copied.jobs["new"] = job()  # type: ignore[union-attr]
    assert [inner.name for inner in job_operators.flatten_jobs(group)] == [None, "mine", None]
    assert job_operators.shallow_copy_job_type(generate) is generate


def test_jobs_of_a_group_may_be_changed_and_found() -> None:
    group = xm.JobGroup()
    for index in range(3):
        group.jobs[f"node_{index}"] = job(args=[index])
    found = job_operators.collect_jobs_by_filter(group, lambda inner: inner.args != xm.merge_args([1]))
    assert [inner.args.to_argv() for inner in found] == [["0"], ["2"]]
    assert repr(xm.JobGroup()) == "xm.JobGroup()"
    assert "a=Job(" in repr(xm.JobGroup(a=job(), constraints=[Same()]))


def test_a_group_with_something_else_inside_says_where() -> None:
    group = nested()
    group.jobs["inner"].jobs["wrong"] = generate  # type: ignore[union-attr]
    with pytest.raises(TypeError, match=r"'inner.wrong' of a JobGroup is <function generate"):
        job_operators.flatten_jobs(group)
    with pytest.raises(TypeError, match=r"jobs are taken from an xm.Job or an xm.JobGroup, not None"):
        job_operators.flatten_jobs(None)  # type: ignore[arg-type]


class Same(xm.Constraint):
    """All in one place."""


def test_each_constraint_is_listed_with_the_jobs_it_holds_for() -> None:
    outer, inner = Same(), Same()
    group = xm.JobGroup(constraints=[outer], a=job(), b=xm.JobGroup(constraints=[inner], c=job(), d=job()))
    cliques = job_operators.aggregate_constraint_cliques(group)
    assert [(c.constraint, c.size, c.group_name, c.parent_group_name) for c in cliques] == [
        (outer, 3, "", ""),
        (inner, 2, "b", ""),
    ]
    assert cliques[1].jobs == job_operators.flatten_jobs(group.jobs["b"])


# --- What add() gives to jobs ---------------------------------------------------------------------------


def test_what_add_is_given_wins_over_what_a_job_has() -> None:
    one = job(args={"a": 1, "b": 2}, env_vars={"X": "1", "Y": "2"})
    given = job_operators.with_args(one, {"args": {"a": 3, "c": 4}, "env_vars": {"X": 5}})
    assert isinstance(given, xm.Job)
    assert given.args.to_argv() == ["--a=3", "--b=2", "--c=4"]
    assert given.env_vars == {"X": "5", "Y": "2"}
    assert one.args.to_argv() == ["--a=1", "--b=2"]
    assert one.env_vars == {"X": "1", "Y": "2"}


def test_a_group_hands_on_what_each_of_its_jobs_is_given() -> None:
    group = nested()
    given = job_operators.with_args(group, {"a": {"args": ["x"]}, "inner": {"c": {"args": ["y"]}}})
    assert [inner.args.to_argv() for inner in job_operators.flatten_jobs(given)] == [["x"], [], ["y"]]
    assert [inner.args.to_argv() for inner in job_operators.flatten_jobs(group)] == [[], [], []]


def test_all_jobs_of_a_group_can_be_given_the_same() -> None:
    args = xm.get_args_for_all_jobs(nested(), {"lr": 0.1})
    assert args == {
        "a": {"args": {"lr": 0.1}},
        "inner": {"b": {"args": {"lr": 0.1}}, "c": {"args": {"lr": 0.1}}},
    }
    given = job_operators.with_args(nested(), args)
    assert {str(inner.args.to_argv()) for inner in job_operators.flatten_jobs(given)} == {"['--lr=0.1']"}
    assert xm.get_args_for_all_jobs(job(), {"lr": 0.1}) == {"args": {"lr": 0.1}}


@pytest.mark.parametrize(
    ("to", "args", "kind", "message"),
    [
        (job(), {"lr": 1}, ValueError, r"args of add\(\) has 'lr', .* into args=\{'args'"),
        (job(), {"arg": {}}, ValueError, "'arg', and a Job takes 'args', 'env_vars'; did you mean 'args'"),
        (nested(), {"inner": {"x": {}}}, ValueError, r"args\['inner'\] of add\(\) has 'x', .* 'b', 'c'"),
        (xm.JobGroup(), {"x": {}}, ValueError, "a JobGroup of these jobs takes none"),
        (job(), ["--x"], TypeError, r"args of add\(\) is a dict, not \['--x'\]"),
        (nested(), {"a": ["--x"]}, TypeError, r"args\['a'\] of add\(\) is a dict, not"),
        (job(), {"args": "--x"}, ValueError, r"write \['--x'\]"),
        (job(), {"env_vars": {"1": ""}}, ValueError, "is no name of a variable"),
        (PROGRAM, {}, TypeError, "what is added is an executable; write xm.Job"),
    ],
)
def test_what_a_job_cannot_be_given_is_refused(
    to: Any, args: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        job_operators.with_args(to, args)
    assert isinstance(caught.value, run.ConfigError)
