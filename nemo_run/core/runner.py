"""The process on the node: read a task, build it, call it, record what became of it.

This file needs nothing but Python's standard library (3.8 or newer) and no other part of nemo_run, so that
it runs in any interpreter or image. What it imports is paid by every task: a no-op task should cost little
more than the start of Python, so everything beyond the interpreter's own modules is imported where used.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # `typing` itself takes as long to import as Python takes to start
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType
    from typing import Any

#: Environment variables that tell a task about its job.
JOB_DIR, ATTEMPT, REPLICA = "NEMORUN_JOB_DIR", "NEMORUN_ATTEMPT", "NEMORUN_REPLICA"
#: Prefix of the variables that hand over `run.Secret`s given as task arguments; gone when the task is called.
SECRET = "NEMORUN_SECRET_"
#: Names the variables whose values are secrets, to be kept out of the record of an error.
SECRETS = "NEMORUN_SECRETS"
#: Names a file below the job's folder that appears when tasks are to make room, and the signal for that.
CHECKPOINT, CHECKPOINT_SIGNAL = "NEMORUN_CHECKPOINT", "NEMORUN_CHECKPOINT_SIGNAL"
#: Set while the launching script's definitions are executed, where nothing may be launched again.
LOADING = "NEMORUN_LOADING"


class NeedsFiddle(Exception):
    """The task holds a kind of Fiddle node that only Fiddle itself can build."""


def main(argv: Sequence[str]) -> None:
    """Run one role's task: `runner.py JOB_DIR ROLE [VARIABLE]`; the variable holds a process's rank."""
    import json

    job_dir, role, *variable = argv
    with open(os.path.join(job_dir, "task.json"), encoding="utf-8") as file:
        tree = json.load(file)[role]
    run(tree, job_dir, role, int(os.environ[variable[0]]) if variable else None)


def run(tree: Any, job_dir: str, role: str, rank: int | None = None) -> None:
    """Call a task and record its value or its error under `results/`.

    `rank` tells apart the processes that a launcher starts of one task (default: there is one process).

    Raises:
        SystemExit: the task's own, or exit code 1 once an error of the task is recorded and printed.
    """
    replica = int(os.environ.get(REPLICA, 0)) if rank is None else rank
    stem = os.path.join(job_dir, "results", record_stem(role, replica, attempt()))
    os.makedirs(os.path.dirname(stem), mode=0o700, exist_ok=True)
    if rank is not None:
        _be_one_of_many(stem)
    secrets = [os.environ.get(name, "") for name in os.environ.get(SECRETS, "").split(",")]
    try:
        _configure_logging()
        if CHECKPOINT in os.environ:
            watch_for_notice()
        if mentioned_names(tree):
            load_main(os.path.join(job_dir, "configs", "main.py"))
        value = call(tree)
    except SystemExit as exc:
        record_error(stem, exc, secrets, rank) if exc.code else record_value(stem, None)
        raise
    except BaseException as exc:
        record_error(stem, exc, secrets, rank)
        sys.excepthook(type(exc), exc, exc.__traceback__)
        raise SystemExit(1) from None
    record_value(stem, value)


def _be_one_of_many(stem: str) -> None:
    """Forget what an earlier process of this rank recorded, and print whole lines only."""
    try:
        os.unlink(stem + ".json")
    except FileNotFoundError:
        pass
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True, write_through=False)


def attempt() -> int:
    """Which attempt at the job this process belongs to, from 1."""
    return int(os.environ.get(ATTEMPT, 1))


def record_stem(role: str, replica: int, attempt: int) -> str:
    """The name, less its ending, of a replica's log and result: each attempt has its own."""
    return f"{role}_{replica}" + (f".attempt{attempt}" if attempt > 1 else "")


# --- from a tree to objects -----------------------------------------------------------------------------


def call(tree: Any) -> Any:
    """Build what a task's tree describes and call it; the value is the task's value."""
    if not tree.get("_partial_"):
        return _built(tree)
    try:
        target, args, kwargs = _Builder(_LEAVES).bound(tree, "")
    except NeedsFiddle:
        target, args, kwargs = _built(tree), [], {}
    for name in [name for name in os.environ if name.startswith(SECRET)]:
        del os.environ[name]
    return target(*args, **kwargs)


def _built(tree: Any) -> Any:
    try:
        return build(tree)
    except NeedsFiddle:
        import fiddle

        from nemo_run.core.serialization import from_tree

        return fiddle.build(from_tree(_revealed(tree)))


def _revealed(tree: Any) -> Any:
    """The tree with texts in the place of secrets and of what a shell would expand."""
    if isinstance(tree, list):
        return [_revealed(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "_secret_" in tree or "_expand_" in tree:
        return build(tree)
    return {key: _revealed(item) for key, item in tree.items()}


def build(tree: Any, leaves: Mapping[str, Any] | None = None) -> Any:
    """The object that a tree describes; nodes that were shared are shared again.

    Args:
        tree: What `core/serialization.py` wrote.
        leaves: How some kinds of leaves become values, where that is not as for a task.

    Raises:
        NeedsFiddle: it holds a buildable other than Config and Partial.
    """
    return _Builder({**_LEAVES, **(leaves or {})}).build(tree, "")


class _Builder:
    """Builds one tree; it remembers the nodes that are shared."""

    def __init__(self, leaves: Mapping[str, Any]) -> None:
        self._leaves = leaves
        self._shared: dict[int, Any] = {}

    def build(self, tree: Any, path: str) -> Any:
        """The object of a tree that stands at `path` in the task."""
        if isinstance(tree, list):
            return [self.build(item, f"{path}[{at}]") for at, item in enumerate(tree)]
        if not isinstance(tree, dict):
            return tree
        if "_ref_" in tree:
            return self._shared[tree["_ref_"]]
        value = self._node(tree, path)
        if "_id_" in tree:
            self._shared[tree["_id_"]] = value
        return value

    def _node(self, tree: dict[str, Any], path: str) -> Any:
        if "_buildable_" in tree:
            raise NeedsFiddle(tree["_buildable_"])
        if "_target_" in tree:
            if tree.get("_call_") is False:
                return resolve(tree["_target_"])
            target, args, kwargs = self.bound(tree, path)
            if tree.get("_partial_"):
                import functools

                return functools.partial(target, *args, **kwargs)
            return _called(target, args, kwargs, path)
        for kind, leaf in self._leaves.items():
            if kind in tree:
                return leaf(tree, lambda item: self.build(item, path))
        return {key: self.build(item, f"{path}[{key!r}]") for key, item in tree.items()}

    def bound(self, tree: dict[str, Any], path: str) -> tuple[Any, list[Any], dict[str, Any]]:
        """What a call's tree calls, and with what."""
        target = resolve(tree["_target_"])
        args = [self.build(item, f"{path}[{at}]") for at, item in enumerate(tree.get("_args_", ()))]
        named = {key: item for key, item in tree.items() if not (key.startswith("_") and key.endswith("_"))}
        named.update(tree.get("_kwargs_", {}))
        kwargs = {key: self.build(item, f"{path}.{key}".lstrip(".")) for key, item in named.items()}
        return target, args, kwargs


def _called(target: Any, args: list[Any], kwargs: dict[str, Any], path: str) -> Any:
    try:
        return target(*args, **kwargs)
    except Exception as exc:
        if path and hasattr(exc, "add_note") and not getattr(exc, "__notes__", None):
            exc.add_note(f"while building the task's argument {path!r}")
        raise


def _instance(tree: dict[str, Any], inner: Any) -> Any:
    cls = resolve(tree["_instance_"])
    instance = cls.__new__(cls)
    instance.__dict__.update({key: inner(item) for key, item in tree["state"].items()})
    return instance


def _bytes(tree: dict[str, Any], inner: Any) -> bytes:
    import binascii

    return binascii.a2b_base64(tree["_bytes_"])


def _path(tree: dict[str, Any], inner: Any) -> Any:
    from pathlib import Path

    return Path(tree["_path_"])


def _secret(tree: dict[str, Any], inner: Any) -> str:
    name = tree["_secret_"]["id"]
    try:
        return os.environ[SECRET + name]
    except KeyError:
        raise RuntimeError(f"the secret {name!r} was not handed to this process") from None


#: How each kind of leaf in a tree becomes a value; `inner` builds what it holds.
_LEAVES: dict[str, Any] = {
    "_float_": lambda tree, inner: float(tree["_float_"]),
    "_list_": lambda tree, inner: [inner(item) for item in tree["_list_"]],
    "_dict_": lambda tree, inner: {inner(key): inner(item) for key, item in tree["_dict_"]},
    "_tuple_": lambda tree, inner: tuple(inner(item) for item in tree["_tuple_"]),
    "_set_": lambda tree, inner: {inner(item) for item in tree["_set_"]},
    "_frozenset_": lambda tree, inner: frozenset(inner(item) for item in tree["_frozenset_"]),
    "_namedtuple_": lambda tree, inner: resolve(tree["_namedtuple_"])(*map(inner, tree["values"])),
    "_enum_": lambda tree, inner: resolve(tree["_enum_"])[tree["name"]],
    "_expand_": lambda tree, inner: tree["_expand_"],
    "_instance_": _instance,
    "_bytes_": _bytes,
    "_path_": _path,
    "_secret_": _secret,
}


def resolve(name: str) -> Any:
    """The object that a dotted name means: the longest part that is a module, then its attributes."""
    import importlib

    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:end])
        try:
            value: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as exc:
            # A module that is there but lacks one of its own imports is an error to be seen.
            if exc.name is None or not (module_name + ".").startswith(exc.name + "."):
                raise
            continue
        for part in parts[end:]:
            value = getattr(value, part)
        return value
    import builtins

    if len(parts) == 1 and hasattr(builtins, name):
        return getattr(builtins, name)
    raise ModuleNotFoundError(f"No module named {parts[0]!r} (for {name!r})", name=parts[0])


def load_main(path: str, source: str | bytes | None = None) -> ModuleType:
    """Make the definitions of the launching script this process's `__main__`; they are read from `path`.

    `multiprocessing` finds them by `__file__`, and what is pickled keeps the name it had at the launch.
    """
    if source is None:
        with open(path, "rb") as file:
            source = file.read()
    module = type(sys)("__main__")
    module.__file__ = path
    sys.modules["__main__"] = module
    os.environ[LOADING] = "1"
    try:
        exec(compile(source, path, "exec"), module.__dict__)
    finally:
        del os.environ[LOADING]
    return module


def mentioned_names(tree: Any, module: str = "__main__") -> set[str]:
    """The names of a module that a tree refers to: for `__main__.Model.build` it is `Model`."""
    names: set[str] = set()
    if isinstance(tree, dict):
        for key, item in tree.items():
            if key in _NAMES and isinstance(item, str) and item.startswith(module + "."):
                names.add(item[len(module) + 1 :].split(".")[0])
            elif isinstance(item, (dict, list)):
                names |= mentioned_names(item, module)
    elif isinstance(tree, list):
        for item in tree:
            names |= mentioned_names(item, module)
    return names


#: The keys of a tree whose values are dotted names.
_NAMES = ("_target_", "_enum_", "_namedtuple_", "_instance_")


def _configure_logging() -> None:
    if level := os.environ.get("NEMORUN_LOG_LEVEL"):
        import logging

        logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def watch_for_notice() -> None:
    """Have this process told by the signal when the file says that the time is nearly up, if it listens.

    Launchers do not hand signals on, and clusters differ in which processes they send them to.
    """
    import threading

    name = "nemo_run watches for notice"
    if CHECKPOINT in os.environ and name not in [thread.name for thread in threading.enumerate()]:
        path = os.path.join(os.environ[JOB_DIR], os.environ[CHECKPOINT])
        number = "SIG" + os.environ[CHECKPOINT_SIGNAL]
        threading.Thread(target=_watch, args=(path, number), name=name, daemon=True).start()


def _watch(path: str, signal_name: str) -> None:
    import signal
    import threading
    import time

    number = getattr(signal, signal_name)
    while not os.path.exists(path):
        time.sleep(1)
    main = threading.main_thread()
    if signal.getsignal(number) not in (signal.SIG_DFL, signal.SIG_IGN) and main.ident:
        signal.pthread_kill(main.ident, number)  # which wakes it where it waits for something


# --- what became of it ----------------------------------------------------------------------------------


def record_value(stem: str, value: Any) -> None:
    """Write down a value: as JSON if that says it exactly, else as a pickle, else that it could not be."""
    if value is None:
        return write(stem + ".json", '{"value": null}\n')
    import json

    try:
        return write(stem + ".json", json.dumps({"value": plain(value)}) + "\n", sync=True)
    except TypeError:
        pass
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    record: dict[str, Any] = {"type": kind}
    try:
        write(stem + ".pkl", _pickled(value), sync=True)
        record["pickle"] = os.path.basename(stem) + ".pkl"
    except Exception as exc:  # a value's own __reduce__ may raise anything; the task itself succeeded
        record["unpicklable"] = f"{type(exc).__name__}: {exc}"
        record["repr"] = _short_repr(value)
    write(stem + ".json", json.dumps(record) + "\n")


def _pickled(value: Any) -> bytes:
    """A pickle that names classes where it can, which are then the reader's own; else one that holds them."""
    import pickle

    try:
        return pickle.dumps(value)
    except Exception:
        try:
            import cloudpickle
        except ImportError:
            raise
        dumped: bytes = cloudpickle.dumps(value)
        return dumped


def _short_repr(value: Any) -> str:
    try:
        return repr(value)[:500]
    except Exception:  # a broken __repr__ must not turn a success into a failure
        return object.__repr__(value)


def record_error(stem: str, exc: BaseException, secrets: Sequence[str] = (), rank: int | None = None) -> None:
    """Write down an error with its traceback, less what they tell of secrets, and whose it is."""
    import json
    import time
    import traceback

    # The frames of this file are no news to the reader.
    while exc.__traceback__ and exc.__traceback__.tb_frame.f_code.co_filename == __file__:
        exc.__traceback__ = exc.__traceback__.tb_next
    error = {
        "type": f"{type(exc).__module__}.{type(exc).__qualname__}".replace("builtins.", ""),
        "message": _masked(str(exc), secrets),
        "traceback": _masked("".join(traceback.format_exception(type(exc), exc, exc.__traceback__)), secrets),
    }
    if rank is not None:
        error["rank"] = str(rank)
    write(stem + ".json", json.dumps({"error": error, "time": time.time()}) + "\n")


def _masked(text: str, secrets: Sequence[str]) -> str:
    """As `core/masking.py` does it, which this file cannot import."""
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret.strip()) >= 3:
            text = text.replace(secret, "••••••")
    return text


def plain(value: Any) -> Any:
    """A value as JSON that reads back as exactly the same value.

    Raises:
        TypeError: there is no such JSON.
    """
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if value - value == 0 else {"_float_": str(value)}
    if kind is list:
        return [plain(item) for item in value]
    if kind is tuple:
        return {"_tuple_": [plain(item) for item in value]}
    if kind is dict:
        if all(type(key) is str and not key.startswith("_") for key in value):
            return {key: plain(item) for key, item in value.items()}
        return {"_dict_": [[plain(key), plain(item)] for key, item in value.items()]}
    raise TypeError(kind)


def unplain(tree: Any) -> Any:
    """The value that `plain` wrote; it makes data only, never an object of a named class."""
    if isinstance(tree, list):
        return [unplain(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    for kind in ("_float_", "_tuple_", "_dict_"):
        if kind in tree:
            return _LEAVES[kind](tree, unplain)
    return {key: unplain(item) for key, item in tree.items()}


def private(path: str, flags: int) -> int:
    """An `opener` for `open`: what it makes is for its owner alone."""
    return os.open(path, flags, 0o600)


def write(path: str, content: str | bytes, *, sync: bool = False) -> None:
    """Write a file whole or not at all, readable by its owner alone.

    Against a killed process the rename is enough; `sync` also waits for the disk (5 ms and more), for what
    must outlast a crash of the machine.
    """
    data = content.encode(errors="surrogateescape") if isinstance(content, str) else content
    temporary = f"{path}.{os.getpid()}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        written = 0
        while written < len(data):
            written += os.write(fd, data[written:])
        if sync:
            os.fsync(fd)
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)
    os.replace(temporary, path)


if __name__ == "__main__":
    # As a script this file's folder comes first on the path, where it would hide modules of the task's.
    del sys.path[0]
    arguments, sys.argv[1:] = sys.argv[1:], []  # they are ours, so no task parses them
    main(arguments)
