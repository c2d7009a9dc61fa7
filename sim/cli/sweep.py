"""The commands `sweep`, `search` and `cache`: many points of a design space, the best of them, the known ones."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli.printing import binary_size, engineering, print_json, print_table, say_if_kernels_are_new, short_keys
from sim.cli.settings import place
from sim.errors import ConfigError, not_among

if TYPE_CHECKING:
    from sim.sweep.run import Outcome
    from sim.sweep.spec import Spec

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")]
Cluster = Annotated[
    str | None, typer.Option("--cluster", metavar="ADDRESS", help="A Dask scheduler, such as tcp://host:8786.")
]
Html = Annotated[bool, typer.Option("--html", help="Add a page, DIR/report.html, with a table and a scatter.")]
PAGE = "report.html"
SPEED_S = 300
"""Seconds over which the rate is taken: points may need minutes."""
TOP = 8
"""How many points the table of a sweep shows."""


def sweep(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="A YAML file with hardware, workload and axes.")],
    output: Annotated[str, typer.Option("-o", "--output", metavar="DIR", help="Folder for the results.")],
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=0, help="Processes on this machine; 0 takes all.")] = 1,
    cluster: Cluster = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished sweep.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Begin an unfinished sweep again.")] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Simulate even what is known already.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Run even a space of more than 10^8 points.")] = False,
    html: Html = False,
    json: Json = False,
) -> None:
    """Simulate every point of a design space; results stream to Parquet and a broken-off sweep resumes."""
    from sim.sweep.local import cpu_count
    from sim.sweep.run import run_sweep
    from sim.sweep.spec import load_spec, points_of, refuse_large

    if cluster is not None and jobs != 1:
        raise ConfigError("--jobs and --cluster exclude each other")
    if resume and restart:
        raise ConfigError("--resume and --restart exclude each other")
    read = load_spec(spec)
    target = place(output)
    if not yes:
        refuse_large(points_of(read))
    say_if_kernels_are_new("machine.run")
    with _bar() as show:
        outcome = run_sweep(
            read, target, jobs=jobs or cpu_count(), cluster=cluster, resume=resume, restart=restart,
            cached=not no_cache, progress=show,
        )  # fmt: skip
    pages = _page(target) if html else []
    if json:
        print_json({"points": outcome.table.num_rows, **outcome.counts, "results": str(target / "results.parquet")})
        return
    _print(outcome, _goal(read))
    print(f"Results in {target}/: {', '.join(['results.parquet', 'sweep.json', *pages])}")


def search(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="A YAML file as `sweep` takes it.")],
    output: Annotated[str, typer.Option("-o", "--output", metavar="DIR", help="Folder; resumed if there.")],
    trials: Annotated[int, typer.Option("--trials", "-n", min=1, help="Points to try, earlier ones too.")] = 100,
    objective: Annotated[
        list[str] | None, typer.Option("--objective", help="A result column, with :min or :max; several make a front.")
    ] = None,
    sampler: Annotated[str, typer.Option("--sampler", help="tpe, nsga2 or random.")] = "tpe",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the sampler.")] = 0,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=0, help="Points tried at once; 0 takes all processors.")] = 1,
    cluster: Cluster = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Simulate even what is known already.")] = False,
    html: Html = False,
    json: Json = False,
) -> None:
    """Search a design space for the points that no other beats in all objectives."""
    from sim.sweep.local import cpu_count
    from sim.sweep.objectives import read_objectives
    from sim.sweep.search import run_search
    from sim.sweep.spec import load_spec
    from sim.sweep.study import Sampler

    samplers = [each.value for each in Sampler]
    if sampler not in samplers:
        raise ConfigError(f"--sampler: {not_among('sampler', sampler, samplers)}")
    read = load_spec(spec)
    target = place(output)
    goals = read_objectives(objective or [])
    say_if_kernels_are_new("machine.run")
    with _bar() as show:
        found = run_search(
            read, target, trials=trials, objectives=goals, sampler=Sampler(sampler), seed=seed,
            jobs=jobs or cpu_count(), cluster=cluster, cached=not no_cache, progress=show,
        )  # fmt: skip
    front = found.front.to_pylist()
    drawn = []
    if front:
        from analysis.figures import draw_all

        drawn = [path.name for path in draw_all(target, ("png", "svg"))]
    drawn += _page(target) if html else []
    if json:
        print_json({"tried": found.tried, "objectives": dict(found.objectives), "front": front})
        return
    print(f"{found.tried:,} points tried, {len(front):,} on the front")
    keys = [key for key in found.front.column_names if key.startswith(("hw.", "workload.")) or key == "variant"]
    lines = [[*(_cell(row[k]) for k in keys), *(f"{row[name]:.4g}" for name in found.objectives)] for row in front]
    print_table("front", [*short_keys(keys), *found.objectives], lines, right=list(found.objectives))
    print(f"Results in {target}/: {', '.join(['front.parquet', 'trials.parquet', 'study.sqlite', *drawn])}")


def _page(target: Path) -> list[str]:
    from analysis.pages import sweep_page
    from sim.output import write_text

    write_text(target / PAGE, sweep_page(target))
    return [PAGE]


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Forget all points.")] = False, json: Json = False
) -> None:
    """Show how many points of sweeps are kept and where, or forget them."""
    from sim.sweep.cache import PointCache

    kept = PointCache()
    if clear:
        cleared = kept.clear()
        print_json({"cleared": cleared}) if json else print(f"forgot {cleared:,} points of {kept.path}")
        return
    points, size = kept.size()
    if json:
        print_json({"path": str(kept.path), "points": points, "bytes": size})
    else:
        print(f"{points:,} points, {binary_size(size)}, in {kept.path}")


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None] | None]:
    """A bar with rate and time left on standard error, drawn only on a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        """Points a second."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.speed or 0:.1f} points/s")

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, speed_estimate_period=SPEED_S) as bar:
        task = bar.add_task("sweep", total=None)
        begun: list[int] = []

        def show(done: int, points: int) -> None:
            if begun:
                bar.update(task, completed=done, total=points)
            else:  # what an earlier run did says nothing of how fast this one is
                begun.append(done)
                bar.reset(task, completed=done, total=points)

        yield show


def _goal(spec: Spec) -> tuple[str, str]:
    """What the best points of a sweep are best in: its first objective with its direction, else time."""
    from sim.sweep.objectives import SHORT

    name, goal = next(iter(spec.objectives.items()), ("time_s", "min"))
    return SHORT.get(name, name), goal


def _print(outcome: Outcome, goal: tuple[str, str]) -> None:
    import pyarrow.compute as pc

    from sim.sweep.point import IMPOSSIBLE, OK

    table = outcome.table
    ordered = sorted(outcome.counts.items(), key=lambda item: item[0] != OK)
    counts = ", ".join(f"{n:,} {status}" for status, n in ordered)
    print(f"{table.num_rows:,} points: {counts}")
    name, direction = goal
    if outcome.counts.get(OK) and name in table.column_names:
        # A sweep may have more rows than should ever be Python objects at once.
        good = table.filter(pc.equal(table["status"], OK))
        good = good.sort_by([(name, "descending" if direction == "max" else "ascending"), ("point", "ascending")])
        told = () if name in ("time_s", "energy_j", "tokens_per_s") else (name,)
        lines = [
            [*(_cell(row[key]) for key in outcome.columns), engineering(row["time_s"], "s"),
             engineering(row["energy_j"], "J"), engineering(row["tokens_per_s"] or 0, "tok/s"), row["bound"],
             *("-" if row[key] is None else f"{row[key]:.4g}" for key in told)]
            for row in good.slice(0, TOP).to_pylist()
        ]  # fmt: skip
        most = {"min": "smallest", "max": "largest"}[direction]
        title = "fastest points" if goal == ("time_s", "min") else f"points with the {most} {name}"
        print_table(title, [*short_keys(outcome.columns), "time", "energy", "rate", "bound", *told], lines)
    for status in sorted(set(outcome.counts) - {OK}):
        reasons = table.filter(pc.equal(table["status"], status))["error"].value_counts().to_pylist()
        what = "cannot exist" if status == IMPOSSIBLE else status
        reasons.sort(key=lambda found: (-found["counts"], found["values"]))
        for found in reasons[:TOP]:
            print(f"{found['counts']:,} {what}: {found['values']}")
        if len(reasons) > TOP:
            print(f"{len(reasons) - TOP:,} further reasons are in the column error of the results")


def _cell(value: Any) -> str:
    return "-" if value is None else str(value)
