"""Config, Partial, Script and autoconvert do what launch scripts rely on."""

from __future__ import annotations

import functools
import pickle
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fiddle as fdl
import pytest
import samples
from rich.console import Console
from samples import Holder, Model, Optimizer, train, with_defaults

from nemo_run import config, describe, lazy
from nemo_run.config import (
    ArgumentError,
    BindError,
    Config,
    ConfigurableMixin,
    Partial,
    Script,
    SetValueError,
)
from nemo_run.errors import ConfigError, MissingDependencyError, NotFoundError
from nemo_run.secret import Secret
from nemo_run.shell import Expand


@pytest.fixture
def without_dot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def with_dot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stand-in for Graphviz's program, which answers with its own arguments."""
    dot = tmp_path / "dot"
    dot.write_text('#!/bin/sh\ncat > /dev/null\necho "<svg>$*</svg>"\n')
    dot.chmod(dot.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


class TestConfig:
    def test_builds_its_object(self) -> None:
        assert fdl.build(Config(Model, Config(Optimizer, lr=0.5), size=3)) == Model(Optimizer(0.5), 3)

    def test_a_partial_builds_a_partial(self) -> None:
        built = fdl.build(Partial(train, Config(Model, size=3), epochs=2))
        assert isinstance(built, functools.partial)
        assert built(lr=1) == (Model(size=3), 2, 1)

    def test_a_wrong_argument_is_named_with_the_right_ones(self) -> None:
        with pytest.raises(BindError) as caught:
            Partial(train, epocks=3)
        assert str(caught.value) == (
            "Cannot bind arguments to train: unexpected 'epocks'; did you mean 'epochs'? "
            "It accepts model, epochs, lr."
        )
        assert isinstance(caught.value, TypeError)
        assert isinstance(caught.value, ConfigError)

    @pytest.mark.parametrize("wrong", [lambda: Config(train, 1, 2, 3, 4), lambda: Config(train, 1, model=2)])
    def test_too_many_arguments_do_not_bind(self, wrong: Any) -> None:
        with pytest.raises(
            BindError, match=r"Cannot bind arguments to train: .*It accepts model, epochs, lr\."
        ):
            wrong()

    @pytest.mark.parametrize("target", [5, "text", Config(train), [1]])
    def test_what_cannot_be_called_cannot_be_configured(self, target: Any) -> None:
        with pytest.raises(BindError):
            Config(target)

    def test_unbound_arguments_are_kept(self) -> None:
        assert Config(train, bind_args=False, hidden=1).__arguments__ == {"hidden": 1}

    def test_an_unknown_attribute_is_refused_with_a_suggestion(self) -> None:
        with pytest.raises(
            AttributeError, match="train takes no argument 'epocks'; did you mean 'epochs'"
        ) as caught:
            Partial(train).epocks = 3
        assert isinstance(caught.value, ArgumentError)

    def test_any_keyword_goes_where_the_target_takes_any(self) -> None:
        cfg = Config(samples.Plain, a=1)
        cfg.b = 2
        assert fdl.build(cfg) == samples.Plain(a=1, b=2)

    @pytest.mark.parametrize(
        ("cfg", "built"),
        [
            (Config(dict, a=1), {"a": 1}),
            (Config({}), {}),
            (Config({"a": 1}, b=2), {"a": 1, "b": 2}),
            (Config(dict[str, int], a=1), {"a": 1}),
        ],
    )
    def test_dicts_can_be_configured(self, cfg: Any, built: Any) -> None:
        assert fdl.build(cfg) == built

    def test_dataclass_instances_become_configs_wherever_they_are(self) -> None:
        cfg = Config(Holder, a=Optimizer(1), b=[Optimizer(2), {"x": (Optimizer(3),)}])
        cfg.c = Model(Optimizer(4))
        assert cfg.a == Config(Optimizer, lr=1, betas=[])
        assert cfg.b[0].lr == 2
        assert cfg.b[1]["x"][0].lr == 3
        assert cfg.c.optimizer.lr == 4
        assert fdl.build(cfg) == Holder(
            Optimizer(1), [Optimizer(2), {"x": (Optimizer(3),)}], Model(Optimizer(4))
        )

    def test_positional_values_are_converted_too(self) -> None:
        cfg = Config(samples.positional, Optimizer(1), 2, 3, Optimizer(4))
        cfg[1] = Optimizer(2)
        assert [value.lr for value in (cfg[0], cfg[1], cfg[3])] == [1, 2, 4]

    def test_an_instance_given_twice_becomes_one_config(self) -> None:
        shared = Optimizer()
        cfg = Config(Holder, a=shared, b=[shared])
        assert cfg.a is cfg.b[0]
        built = fdl.build(cfg)
        assert built.a is built.b[0]

    def test_containers_without_instances_stay_the_same_objects(self) -> None:
        items = [1, {"a": (2,)}]
        assert Config(Holder, a=items).a is items

    @pytest.mark.parametrize("value", [samples.OwnInit(3), samples.WithInitVar(), Secret("X"), Optimizer])
    def test_what_its_fields_cannot_make_again_stays_as_it_is(self, value: Any) -> None:
        assert Config(Holder, a=value).a is value

    def test_annotated_parameters_are_filled_in(self) -> None:
        cfg = Config(with_defaults)
        assert cfg.model == Config(Model)
        assert cfg.optimizer == Config(Optimizer)
        assert cfg.make == Partial(Optimizer)
        assert "other" not in cfg.__arguments__

    def test_annotated_parameters_that_are_given_stay(self) -> None:
        cfg = Config(with_defaults, None, optimizer=Config(Optimizer, lr=9))
        assert cfg.model is None
        assert cfg.optimizer.lr == 9

    def test_pickles(self) -> None:
        cfg = Partial(train, Config(Model, size=3))
        assert pickle.loads(pickle.dumps(cfg)) == cfg


class TestMethods:
    def test_a_clone_shares_nothing_but_keeps_its_own_sharing(self) -> None:
        shared = Config(Optimizer)
        cfg = Config(Holder, a=shared, b=[shared])
        clone = cfg.clone()
        clone.a.lr = 5
        assert clone.b[0].lr == 5
        assert cfg.a.lr == 0.1
        assert type(clone) is Config

    def test_walk_gives_each_config_that_has_the_argument(self) -> None:
        cfg = Config(Model, Config(Optimizer, lr=1.0), layers=[Config(Optimizer), Config(Model)])
        assert cfg.walk(lr=lambda node: node.lr * 2, size=lambda node: 5) is cfg
        assert cfg.optimizer.lr == 2.0
        assert cfg.layers[0].lr == 0.2
        assert (cfg.size, cfg.layers[1].size) == (5, 5)

    def test_walk_visits_a_shared_config_once(self) -> None:
        shared = Config(Optimizer, lr=1.0)
        Config(Holder, a=shared, b=shared).walk(lr=lambda node: node.lr * 2)
        assert shared.lr == 2.0

    def test_broadcast_sets_defaults_of_any_kind(self) -> None:
        cfg = Config(Model, Config(Optimizer)).broadcast(betas=[1], lr=3)
        assert (cfg.optimizer.betas, cfg.optimizer.lr) == ([1], 3)

    def test_broadcast_leaves_alone_what_has_no_such_argument(self) -> None:
        cfg = Config(Model, Config(samples.Plain))
        assert cfg.clone().broadcast(nothing=1) == cfg

    def test_a_diff_is_printable(self) -> None:
        old = Config(Model, Config(Optimizer, lr=1), layers=[1])
        new = Config(Model, Config(Optimizer, lr=2), size=3)
        assert str(new.diff(old)).splitlines() == ["~ optimizer.lr: 1 → 2", "- layers[0]: 1", "+ size: 3"]
        assert "= optimizer: Config(Optimizer)" in str(new.diff(old, trim=False))

    def test_equal_configs_have_no_difference(self) -> None:
        assert str(Config(Model, size=1).diff(Config(Model, size=1))) == "no difference"

    def test_drawings_name_the_arguments(self) -> None:
        old, new = Config(Model, size=1), Config(Model, size=271)
        assert "size" in new.visualize().source
        assert "271" in new.diff(old).visualize().source

    @pytest.mark.usefixtures("without_dot")
    def test_without_graphviz_notebooks_show_text_and_files_are_refused(self, tmp_path: Path) -> None:
        cfg = Config(Model)
        assert cfg._repr_svg_() is None
        assert cfg.diff(cfg)._repr_svg_() is None
        with pytest.raises(MissingDependencyError, match="apt-get install graphviz"):
            cfg.save_config_img(tmp_path / "x.png")

    @pytest.mark.usefixtures("with_dot")
    def test_images_are_drawn_in_the_format_of_their_name(self, tmp_path: Path) -> None:
        cfg = Config(Model)
        assert "-Tpng" in cfg.save_config_img(tmp_path / "x").read_text()
        assert cfg.save_config_img(str(tmp_path / "x.svg")).name == "x.svg"
        assert "-Tsvg" in (cfg._repr_svg_() or "")


@dataclass
class Setting(ConfigurableMixin):
    a: int = 1
    b: Any = None


class TestMixin:
    def test_a_dataclass_becomes_a_config_of_its_fields(self) -> None:
        cfg = Setting(b=Setting(3)).to_config()
        assert type(cfg) is Config
        assert fdl.build(cfg) == Setting(b=Setting(3))

    def test_two_can_be_compared(self) -> None:
        assert str(Setting(2).diff(Setting(3))) == "~ a: 3 → 2"

    def test_a_class_with_a_constructor_of_its_own_is_refused(self) -> None:
        class Own(ConfigurableMixin):
            pass

        with pytest.raises(ConfigError, match="constructor of its own"):
            Own().to_config()


class TestScript:
    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({}, "path or an inline"),
            ({"path": "x", "args": "a b"}, "list of words"),
            ({"path": "x", "m": True}, "entrypoint='python'"),
        ],
    )
    def test_what_cannot_run_is_refused(self, kwargs: Any, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            Script(**kwargs)

    def test_words_stay_words(self) -> None:
        args = ["a b", "a'b", "$a", "", "ü\n", Expand("$HOME")]
        command = Script("x.sh", args=args).to_command("/py")
        assert command == ["bash", "x.sh", *args]
        assert type(command[-1]) is Expand

    def test_a_secret_is_no_argument_because_arguments_are_seen_by_everybody(self) -> None:
        with pytest.raises(ConfigError, match="hand a Secret over in its env"):
            Script("x.sh", args=["--token", Secret("T")])

    @pytest.mark.parametrize("python", ["python", "python3"])
    def test_python_is_the_given_interpreter(self, python: str) -> None:
        assert Script("x.py", entrypoint=f"{python} -u").to_command("/v/py") == ["/v/py", "-u", "x.py"]

    def test_a_module_is_run_as_one(self) -> None:
        script = Script("pkg.mod", m=True, entrypoint="/opt/python3.11", args=["--n", 3])  # type: ignore[list-item]
        assert script.to_command("/py") == ["/opt/python3.11", "-m", "pkg.mod", "--n", "3"]

    def test_inline_wins_over_path_and_takes_no_args(self) -> None:
        script = Script("x.sh", inline="echo hi", args=["no"])
        assert script.to_command("/py", "/scripts/a.sh") == ["bash", "/scripts/a.sh"]

    @pytest.mark.parametrize(("entrypoint", "text"), [("bash", "echo 'a  b'"), ("python", "print('a  b')")])
    def test_inline_runs_without_a_file_too(self, entrypoint: str, text: str) -> None:
        import sys

        command = Script(inline=text, entrypoint=entrypoint).to_command(sys.executable)
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
        assert done.stdout == "a  b\n"

    @pytest.mark.parametrize(
        ("script", "name"),
        [
            (Script("a/train.py"), "train.py"),
            (Script(inline="\n echo 'hello world'"), "echo_hello"),
            (Script(inline="!!"), "script"),
        ],
    )
    def test_has_a_name_for_people(self, script: Script, name: str) -> None:
        assert script.get_name() == name

    def test_lists_are_not_shared_between_scripts(self) -> None:
        assert Script("a").args is not Script("b").args


class TestAutoconvert:
    def test_constructors_become_configs(self) -> None:
        assert samples.make_optimizer(0.3) == Config(Optimizer, lr=0.3)
        assert type(samples.make_optimizer()) is Config

    def test_functions_compose(self) -> None:
        assert samples.make_model() == Config(Model, Config(Optimizer, lr=3.0), size=2)

    def test_partial_gives_partials_without_a_warning(self, caplog: pytest.LogCaptureFixture) -> None:
        made = samples.make_partial()
        assert made == Partial(Model, size=7)
        assert type(made) is Partial
        assert not caplog.records

    def test_a_list_gives_configs(self) -> None:
        made = samples.make_many()
        assert [type(cfg) for cfg in made] == [Config] * 3
        assert [cfg.lr for cfg in made] == [1.0, 2.0, 3.0]

    def test_the_function_itself_is_kept(self) -> None:
        assert samples.make_optimizer.wrapped(0.3) == Optimizer(0.3)
        assert samples.make_optimizer.__name__ == "make_optimizer"

    def test_a_function_without_source_is_refused(self) -> None:
        scope: dict[str, Any] = {}
        exec(compile("def f(): return dict(a=1)", "<typed in>", "exec"), scope)
        with pytest.raises(ConfigError, match="no source for f"):
            config.autoconvert(scope["f"])


EXECUTORS = """
import os
from samples import Optimizer
def local(lr=1.0):
    return Optimizer(lr)
ready = Optimizer(5)
"""


class TestTools:
    @pytest.fixture
    def executors(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("NEMORUN_HOME", str(tmp_path))
        (tmp_path / "executors.py").write_text(EXECUTORS)
        return tmp_path / "executors.py"

    @pytest.mark.usefixtures("executors")
    def test_executors_come_from_the_home_folder(self) -> None:
        assert config.import_executor("local", lr=3) == Optimizer(3)
        assert config.import_executor("ready") == Optimizer(5)

    def test_call_is_honoured(self, executors: Path) -> None:
        assert config.import_executor("local", executors, call=False).__name__ == "local"
        with pytest.raises(ConfigError, match="is not called"):
            config.import_executor("ready", executors, lr=1)

    def test_an_unknown_executor_is_named_with_those_there_are(self, executors: Path) -> None:
        with pytest.raises(NotFoundError, match="did you mean 'local'") as caught:
            config.import_executor("locl", executors)
        assert caught.value.known == ("local", "ready")
        with pytest.raises(NotFoundError, match="no file of executors"):
            config.import_executor("local", executors / "none.py")

    def test_from_dict_makes_dataclasses(self) -> None:
        assert config.from_dict({"lr": 1, "betas": [2]}, Optimizer) == Optimizer(1, [2])
        with pytest.raises(ConfigError, match="Optimizer has no field 'l'"):
            config.from_dict({"l": 1}, Optimizer)

    @pytest.mark.parametrize(
        ("path", "read"),
        [
            ("a", lambda cfg: cfg.a),
            ("b.lr", lambda cfg: cfg.b.lr),
            ("c[1].size", lambda cfg: cfg.c[1].size),
            ("c[2]['x y']", lambda cfg: cfg.c[2]["x y"]),
            ("c[2].z", lambda cfg: cfg.c[2]["z"]),
            ("c[2][7]", lambda cfg: cfg.c[2][7]),
        ],
    )
    def test_set_value_follows_paths(self, path: str, read: Any) -> None:
        cfg = Config(Holder, b=Config(Optimizer), c=[0, Config(Model), {7: 0}])
        config.set_value(cfg, path, 42)
        assert read(cfg) == 42

    @pytest.mark.parametrize("path", ["", "a b", "b..lr", "b.nothing", "c[9]", "c[x]", "a.b.c", ".a"])
    def test_set_value_refuses_paths_that_lead_nowhere(self, path: str) -> None:
        with pytest.raises(SetValueError):
            config.set_value(Config(Holder, b=Config(Optimizer), c=[]), path, 1)

    def test_types_have_a_namespace(self) -> None:
        assert {config.get_type_namespace(t) for t in (Optimizer, Optimizer(), Config(Optimizer))} == {
            "samples.Optimizer"
        }

    def test_the_home_folder_is_reached_from_here(self) -> None:
        assert callable(config.get_nemorun_home)
        assert config.RUNDIR_NAME == "nemo_run"


class TestDescribe:
    @pytest.mark.parametrize(
        ("task", "words"),
        [
            (Partial(train, Config(Model, size=271)), ["train", "271", "epochs"]),
            (Script(inline="echo hi", env={"A": Secret("TOKEN")}), ["echo hi", "Secret('TOKEN')"]),
            (train, ["train", "epochs"]),
        ],
    )
    def test_a_dry_run_shows_the_arguments(self, task: Any, words: list[str], capsys: Any) -> None:
        describe.dryrun_fn(task, executor=Optimizer(99))
        out = capsys.readouterr().out
        assert all(word in out for word in [*words, "Executor", "99"])

    def test_a_dry_run_builds_when_asked_to(self) -> None:
        with pytest.raises(TypeError):
            describe.dryrun_fn(Partial(train, Config(samples.positional)), build=True)

    def test_help_shows_types_defaults_and_docs(self) -> None:
        console = Console(record=True, width=100)
        describe.help(train, console=console)
        text = console.export_text()
        assert all(word in text for word in ["samples.train", "Train a model.", "epochs", "int", "required"])
        describe.help(Config(Optimizer, lr=3), with_docs=False, console=console, namespace="there")
        assert "there.Optimizer" in console.export_text()


class TestLazyImports:
    def test_modules_that_are_not_here_can_be_named(self) -> None:
        with lazy.lazy_imports():
            import not_here.deep
            from not_here import llm
        cfg = Config(llm.gpt.Model, size=3, act=not_here.deep.relu)
        assert cfg.__fn_or_cls__ == lazy.LazyTarget("not_here.llm.gpt.Model")
        assert cfg.act == lazy.LazyTarget("not_here.deep.relu")
        assert cfg.clone() == cfg
        with pytest.raises(ModuleNotFoundError):
            llm.gpt.Model()

    def test_a_lazy_target_is_called_for_real(self) -> None:
        assert lazy.LazyTarget("samples.Optimizer")(lr=4) == Optimizer(4)

    def test_what_is_imported_already_and_what_python_has_is_real(self) -> None:
        with lazy.lazy_imports():
            import json

            import samples as again
        assert json.loads("1") == 1
        assert again is samples

    def test_fallback_makes_only_failures_lazy(self) -> None:
        with lazy.lazy_imports(fallback_to_lazy=True):
            import not_here
            import this_sample
        assert isinstance(not_here, lazy.LazyModule)
        assert this_sample.VALUE == 1

    def test_stars_are_refused_and_imports_work_again_afterwards(self) -> None:
        scope = {"lazy": lazy}
        with pytest.raises(ConfigError, match="name what you need"):
            exec("with lazy.lazy_imports():\n    from not_here import *", scope)
        with pytest.raises(ModuleNotFoundError):
            import not_here  # noqa: F401
