"""What is measured: each function takes one group of rows of the table."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from measure import FOLDER, PYTHON, Group, Row, check, command, median_of, pairs, python, seconds

NEMO = [str(nemo)] if (nemo := Path(PYTHON).with_name("nemo")).exists() else [PYTHON, "-m", "nemo_run"]
PASS = python("pass")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything."""

    #: Pairs for what takes milliseconds, and for what takes seconds.
    pairs: int = 21
    runs: int = 5
    parallel: tuple[int, ...] = (1, 20, 100, 1000)
    scripts: int = 100
    jobs: tuple[int, ...] = (100, 1000)
    experiments: int = 10_000
    lines: int = 40
    slurm_jobs: int = 280
    log_mb: int = 200


QUICK = Sizes(
    pairs=3,
    runs=1,
    parallel=(1, 10),
    scripts=10,
    jobs=(10, 50),
    experiments=200,
    lines=5,
    log_mb=5,
    slurm_jobs=14,
)


def imports(sizes: Sizes) -> Group:
    """Starting to use it."""
    return Group(
        title="Import",
        how="A new interpreter runs one statement; the floor is one that runs `pass`. What"
        " `nemo_run` names is imported when it is first used, which is why two uses stand beside it.",
        rows=[
            _against_pass("`import nemo_run`", python("import nemo_run"), sizes, goal="≤ 2×"),
            _against_pass(
                "… and use `LocalExecutor`", python("import nemo_run as r; r.LocalExecutor"), sizes
            ),
            _against_pass("… and use `Experiment`", python("import nemo_run as r; r.Experiment"), sizes),
            _against_pass("for scale: `import fiddle`", python("import fiddle"), sizes),
        ],
    )


def _against_pass(what: str, ours: Callable[[], float], sizes: Sizes, goal: str = "") -> Row:
    PASS(), ours()
    row = pairs(what, ours, PASS, count=sizes.pairs, goal=goal)
    if what == "`import nemo_run`" and has_submitit():
        row = replace(row, submitit=median_of(python("import submitit"), sizes.pairs))
    return row


def commands(sizes: Sizes) -> Group:
    """The command line, with many experiments in the home."""
    count = f"{sizes.experiments:,}"
    rows = [_against_pass("`nemo --help`", command(*NEMO, "--help"), sizes, goal="≤ 8×")]
    for kind, titles in (("one title", 1), ("as many titles", sizes.experiments)):
        with _home() as home:
            newest = make_experiments(sizes.experiments, titles)
            for words in (("list",), ("status", newest)):
                what = f"`nemo experiment {words[0]}`, {count} of {kind}"
                ours = command(*NEMO, "experiment", *words)
                rows.append(_against_pass(what, ours, sizes, goal="≤ 12×"))
            check(["rm", "-rf", home])
    rows += [_script_help(sizes), _overrides(sizes)]
    return Group(
        title="Command line",
        how=f"The command from its start to its end, beside `python -c pass`. The home holds {count}"
        " experiments, ten minutes apart, with the records that a run writes; `status` is given an id.",
        rows=rows,
    )


def _script_help(sizes: Sizes) -> Row:
    """What the help of a command made of a function costs beyond importing its script."""
    importing = command(PYTHON, "-c", "import fiddle, entry")
    importing()
    what = "a script's own `--help`, beside importing it and Fiddle"
    return pairs(
        what, command(PYTHON, str(FOLDER / "entry.py"), "--help"), importing, count=sizes.pairs, goal="≤ 1.5×"
    )


def _overrides(sizes: Sizes) -> Row:
    import entry

    from nemo_run.cli.factories import REGISTRY
    from nemo_run.cli.overrides import apply_overrides
    from nemo_run.cli.parsing import FactoryReader

    texts = [f"models[{at % 10}].layers[{at % 99}].dim={at}" for at in range(200)]

    def each() -> float:
        config, reader = entry.thousand_nodes(), FactoryReader(REGISTRY)
        return seconds(lambda: [apply_overrides(config, [text], reader) for text in texts]) / len(texts)

    what = "one override of a config of 1,000 nodes"
    return Row(what=what, ours=median_of(each, sizes.runs), goal="≤ 0.005 s")


def make_experiments(count: int, titles: int) -> str:
    """Fill NEMORUN_HOME with copies of an experiment that was run; returns the newest's id."""
    from nemo_run.run.store import Store, new_id

    check([PYTHON, str(FOLDER / "child.py"), "parallel", "1", "1", "1", "noop"])
    first = next(Path(os.environ["NEMORUN_HOME"]).glob("experiments/bench/bench_*"))
    store = Store(first)
    record = store.experiment()
    texts = {
        str(path.relative_to(first)): path.read_text()
        for path in first.rglob("*")
        if path.is_file() and path.suffix in (".json", ".yaml", ".txt", ".log", ".py")
    }
    texts.pop("experiment.json")
    name = ""
    for number in range(count):
        title = f"title {number % titles}"
        created = record.created - 600 * (count - number)
        name = new_id(title, int(created * 1000))
        files = {path: text.replace(store.id, name) for path, text in texts.items()}
        made = Store.create(replace(record, id=name, title=title, created=created), files)
        os.utime(made.path.parent, (created, created))
    check(["rm", "-rf", str(first.parent)])
    return name


def sequential(sizes: Sizes) -> Group:
    """One task, and one after the other."""
    one = paired("one no-op Python task, `run.run` to its value", "≤ 5×", "one", 3 * sizes.runs)
    five = paired("5 of them in sequence, one experiment", "≤ 3×", "sequence", 5, sizes.runs)
    script = "import nemo_run as run, noop; run.run(noop.noop, run.LocalExecutor(), tail_logs=False)"
    with _home():
        what = "a whole script that runs one, imports included"
        whole = pairs(what, python(script), PASS, count=sizes.runs)
    if has_submitit():
        one, five = (
            replace(row, submitit=child("submitit_tasks", count, sizes.runs)["ours"])
            for row, count in ((one, 1), (five, 5))
        )
    return Group(
        title="One task, and one after the other",
        how="From the call to the value, in a process that has run a task before; the floor is as many"
        " `python -c pass`, one after the other. submitit runs its own"
        " side by side, as it knows no sequence.",
        rows=[one, five, whole],
    )


def parallel(sizes: Sizes) -> Group:
    """Many at once."""
    rows = [
        paired(f"{count} no-op Python tasks, {_width(width)}", "≤ 2×" if count > 1 else "≤ 5×",
                "parallel", count, width, _runs(sizes, count), "noop")
        for count in sizes.parallel
        for width in (2, 0)
    ]  # fmt: skip
    rows += [
        paired(f"{sizes.scripts} Scripts of a bare `python`, {_width(width)}", "≤ 1.3×",
                "parallel", sizes.scripts, width, sizes.runs, "script")
        for width in (2, 0)
    ]  # fmt: skip
    if has_submitit():
        theirs = child("submitit_tasks", 20, sizes.runs)["ours"]
        rows = [replace(r, submitit=theirs) if r.what.startswith("20 no-op") else r for r in rows]
    return Group(
        title="Many at once",
        how="From `Experiment(…)` over `add` to the end of `run`; the floor is a pool that keeps two bare"
        " interpreters running, with `subprocess` and nothing else, whatever our width is: `max_parallel=2`,"
        f" and the default, which is the CPU count ({os.cpu_count()}). submitit starts all at once.",
        rows=rows,
    )


def _runs(sizes: Sizes, count: int) -> int:
    return 1 if count >= 1000 else sizes.runs


def _width(width: int) -> str:
    return f"{width} wide" if width else f"{os.cpu_count()} wide"


def records(sizes: Sizes) -> Group:
    """What an experiment costs beside its jobs."""
    few, many = sizes.jobs
    rows = []
    added = {count: _quickest("add", count, times=sizes.runs) for count in sizes.jobs}
    for part, what in (("add", "add and serialize"), ("write", "write the records of")):
        for count in sizes.jobs:
            # Linear: the floor of many is what few take, times as many.
            floor = added[few][part] * many / few if count == many else None
            row = Row(what=f"{what} {count:,} jobs", ours=added[count][part], floor=floor)
            rows.append(replace(row, ratio=row.ours / floor, goal="≤ 1.5×") if floor else row)
    for count, goal in zip(sizes.jobs, ("< 0.2 s", ""), strict=True):
        with _home() as home:
            child("memory", count)
            name = max(path.name for path in (home / "experiments" / "bench").glob("bench_*"))
            taken = median_of(lambda name=name: child("reopen", name)["seconds"], sizes.runs)
            rows.append(Row(what=f"reopen {count:,} jobs: from_id and status", ours=taken, goal=goal))
    return Group(
        title="Records",
        how=f"Adding {many:,} jobs is set beside {many // few} times what {few} take, both the least of few:"
        " 1× is linear. Reopening is timed in a new process, once what it imports is loaded.",
        rows=rows,
    )


def memory(sizes: Sizes) -> Group:
    """What the launcher takes."""
    rows = []
    for count, goal in zip(sizes.jobs, ("≤ 60 MB", "< 200 MB"), strict=True):
        taken = child("memory", count)
        what = f"launcher's peak memory, {count:,} jobs run"
        row = Row(what=what, ours=taken["run"], floor=taken["bare"], unit="MB", goal=goal)
        rows.append(replace(row, ratio=row.ours / taken["bare"]))
        rows.append(
            Row(what="… of which beyond what it imports", ours=taken["run"] - taken["imports"], unit="MB")
        )
    if has_submitit():
        theirs = child("submitit_tasks", 20, 1)["memory"]
        rows[0] = replace(rows[0], submitit=theirs)
    return Group(
        title="Memory",
        how="The most a launcher ever had in memory (VmHWM), one task before and then so many jobs; the"
        " floor is the same process before it imports nemo_run. submitit's is for 20 tasks.",
        rows=rows,
    )


def logs(sizes: Sizes) -> Group:
    """Following a log, and reading a large one."""
    with _home():
        taken = child("follow", sizes.lines)
        rows = [
            Row(
                what="a line's way to a follower, median",
                ours=taken["median"],
                floor=taken["pipe"],
                goal="< 0.2 s",
            ),
            Row(what="… the slowest line", ours=taken["worst"]),
        ]
        name, log = _large_log(sizes.log_mb)
        read = [*NEMO, "experiment", "logs", name]
        count = max(1, sizes.runs // 2)
        what = f"read {sizes.log_mb} MB of lines: `nemo experiment logs`"
        rows.append(pairs(what, _piped(*read), _piped("cat", log), count=count))
        peak = child("peak", "experiment", "logs", name)["memory"]
        rows.append(Row(what="… its peak memory", ours=peak, unit="MB"))
    return Group(
        title="Logs",
        how="A job prints the time every 50 ms; `Executor.logs(follow=True)` reads along, and the floor reads"
        " the same from a pipe. The large log is read into `wc -l`, beside `cat`, from warm disk caches.",
        rows=rows,
    )


def _large_log(megabytes: int) -> tuple[str, str]:
    line = "epoch 12 step 3456 loss 0.123456 accuracy 0.98765 lr 0.0003 tokens/s 123456.7"
    program = f"yes '{line}' | head -c {megabytes}M"
    code = (
        f"import nemo_run as run\nscript = run.Script(inline={program!r})\n"
        "with run.Experiment('log', executor=run.LocalExecutor(), clean_mode=True) as exp:\n"
        "    exp.add(script, name='log'); exp.run()\nprint(exp.id, exp.path)"
    )
    name, path = check([PYTHON, "-c", code]).split()
    return name, str(next(Path(path).glob("log/logs/*.log")))


def _piped(*argv: str) -> Callable[[], float]:
    return command("sh", "-c", '"$@" | wc -l', "sh", *argv)


# --- helpers --------------------------------------------------------------------------------------------


def child(name: str, *arguments: Any) -> Any:
    """What `child.py` measured, in a home of its own unless there is one."""
    with contextlib.ExitStack() as stack:
        if "NEMORUN_HOME" not in os.environ:
            stack.enter_context(_home())
        return json.loads(check([PYTHON, str(FOLDER / "child.py"), name, *map(str, arguments)]))


def _quickest(name: str, *arguments: Any, times: int) -> dict[str, float]:
    """The least of each figure: what is compared across sizes is not taken in the same moment."""
    taken = [child(name, *arguments) for _ in range(times + 1)]
    return {part: min(figures[part] for figures in taken) for part in taken[0]}


def paired(what: str, goal: str, name: str, *arguments: Any) -> Row:
    """A row that a function of `child.py` measured beside its floor."""
    taken = child(name, *arguments)
    return Row(what=what, ours=taken["ours"], floor=taken["floor"], ratio=taken["ratio"], goal=goal)


@contextlib.contextmanager
def _home() -> Iterator[Path]:
    """A NEMORUN_HOME that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="nemo-bench-") as folder:
        os.environ["NEMORUN_HOME"] = folder
        try:
            yield Path(folder)
        finally:
            del os.environ["NEMORUN_HOME"]


def has_submitit() -> bool:
    """Whether it is installed to compare with."""
    from importlib.util import find_spec

    return find_spec("submitit") is not None


GROUPS: dict[str, Callable[[Sizes], Group]] = {
    "imports": imports,
    "sequential": sequential,
    "parallel": parallel,
    "records": records,
    "memory": memory,
    "logs": logs,
    # Last, as the disk is busy for a while with the thousands of folders that this makes and removes.
    "commands": commands,
}
