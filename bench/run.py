"""Measure nemo_run beside its floor and beside submitit, and write RESULTS.md: `make bench`.

    bench/run.py [--quick] [--only NAME ...]

`--quick` takes seconds with small counts, and neither it nor `--only` writes RESULTS.md.
"""

from __future__ import annotations

import argparse
import compileall
import os
import sys
from pathlib import Path

from measure import FOLDER, Group, Row, load, machine

RESULTS = FOLDER / "RESULTS.md"
HEADER = "| what | floor | ours | ratio | goal | submitit |\n|---|---:|---:|---:|---|---:|"


def main() -> None:
    """Measure what was asked for, showing each group as it is done."""
    from containers import containers
    from groups import GROUPS, QUICK, Sizes
    from packages import packages
    from skypilot import skypilot
    from slurm import slurm
    from ssh import ssh
    from xm import xm

    GROUPS |= {"packages": packages, "xm": xm, "containers": containers, "ssh": ssh, "slurm": slurm}
    GROUPS |= {"skypilot": skypilot}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small counts, to see that it runs")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=GROUPS, default=list(GROUPS))
    chosen = parser.parse_args()
    _prepare()
    before = load()
    print(machine(), f"load {before:.1f}", sep="\n")
    done = []
    for name in chosen.only:
        done.append(GROUPS[name](QUICK if chosen.quick else Sizes()))
        print(shown(done[-1]), flush=True)
    if not chosen.quick and chosen.only == list(GROUPS):
        RESULTS.write_text(results([group for group in done if group.rows], before, load()))
        print(f"\nWritten to {RESULTS.relative_to(FOLDER.parent)}.")


def _prepare() -> None:
    """Compile once, so that nobody's start pays for it, and use no home but our own."""
    for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "NEMORUN_HOME"):
        os.environ.pop(name, None)
    os.environ["PYTHONPATH"] = str(FOLDER)
    for folder in (FOLDER, FOLDER.parent / "nemo_run", *_site_packages()):
        compileall.compile_dir(folder, quiet=2)


def _site_packages() -> list[Path]:
    import site

    return [Path(folder) for folder in site.getsitepackages() if sys.prefix != sys.base_prefix]


# --- showing --------------------------------------------------------------------------------------------


def shown(group: Group) -> str:
    """A group for a terminal of 80 columns: what it is on one line, its figures below."""
    lines = [f"\n{group.title}"]
    for row in group.rows:
        lines.append(f"  {row.what.replace('`', '')}")
        lines.append(f"      {_figures(row)}")
    return "\n".join(lines)


def _figures(row: Row) -> str:
    parts = [f"ours {_number(row, row.ours)}"]
    if row.floor is not None:
        parts.append(f"floor {_number(row, row.floor)}")
    if row.ratio is not None:
        parts.append(f"{row.ratio:.2f}×")
    if row.goal:
        parts.append(f"goal {row.goal}" + ("" if row.met else " MISSED"))
    if row.submitit is not None:
        parts.append(f"submitit {_number(row, row.submitit)}")
    return "  ".join(parts)


def _number(row: Row, value: float | None) -> str:
    if value is None:
        return "–"
    if row.unit == "MB":
        return f"{value:.0f} MB"
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"


def results(groups: list[Group], before: float, after: float) -> str:
    """The page."""
    head = (
        "# Results\n\nWritten by `make bench`: each figure beside its floor, taken in turn."
        "\nA time is a median, a ratio the median of the pairs' ratios. Bytecode is compiled for all."
        f"\n\n{machine()}.\nLoad before {before:.1f}, after {after:.1f}.\n"
    )
    return head + "".join(_section(group) for group in groups)


def _section(group: Group) -> str:
    rows = "\n".join(_table_row(row) for row in group.rows)
    return f"\n## {group.title}\n\n{group.how}\n\n{HEADER}\n{rows}\n"


def _table_row(row: Row) -> str:
    ratio = "–" if row.ratio is None else f"{row.ratio:.2f}×"
    goal = "–" if not row.goal else row.goal if row.met else f"{row.goal}, **missed**"
    floor, ours, theirs = (_number(row, value) for value in (row.floor, row.ours, row.submitit))
    return f"| {row.what} | {floor} | {ours} | {ratio} | {goal} | {theirs} |"


if __name__ == "__main__":
    main()
