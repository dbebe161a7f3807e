"""What the command line shows on a terminal: progress on stderr, tables, one-line errors."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from soroq.pipeline.run import Listener
    from soroq.pipeline.run import Progress as Step

FILE_WIDTH = 120  # columns of what goes to a file or a pipe, unless COLUMNS says

out = Console()
err = Console(stderr=True)
if not out.is_terminal and "COLUMNS" not in os.environ:
    out.width = FILE_WIDTH


def _progress(count: str) -> Progress:
    """Return a bar on stderr: `count` first, then time gone, time left and what is being done."""
    return Progress(
        TextColumn(count),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=err,
        transient=not err.is_terminal,
    )


@contextmanager
def block_progress() -> Iterator["Listener"]:
    """Yield a listener that shows what is done, the module at work and the time left."""
    with _progress("{task.fields[unit]} {task.completed:>3}/{task.total}") as bar:
        task = bar.add_task("", total=None, unit="block")
        last = ("", -1)

        def listen(step: "Step") -> None:
            nonlocal last
            if step.unit != last[0]:  # another kind of work: its time left is counted anew
                bar.reset(task)
            bar.update(
                task,
                completed=step.done,
                total=step.total,
                description=step.module,
                unit=step.unit,
            )
            if not err.is_terminal and (step.unit, step.done) != last:
                err.print(f"{step.unit} {step.done}/{step.total} {step.module}", highlight=False)
            last = (step.unit, step.done)

        yield listen


@contextmanager
def check_progress() -> Iterator[Callable[[int, int, str], None]]:
    """Yield a listener (done, total, what) that shows each part of a check and its time left."""
    with _progress("{task.completed:>3}/{task.total}") as bar:
        task = bar.add_task("", total=None)
        last = ""

        def listen(done: int, total: int, what: str) -> None:
            nonlocal last
            if what != last:
                bar.reset(task)
                if not err.is_terminal and done < total:
                    err.print(f"running {what}", highlight=False)
            bar.update(task, completed=done, total=total, description=what)
            last = what

        yield listen


@contextmanager
def train_progress(unit: str = "step") -> Iterator[Callable[[int, int, str], None]]:
    """Yield a listener (steps done, total, what) of a training run; a line a step off terminals."""
    with _progress(unit + " {task.completed:>3}/{task.total}") as bar:
        task = bar.add_task("", total=None)

        def listen(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)
            if not err.is_terminal:
                err.print(f"{unit} {done}/{total} {what}", highlight=False)

        yield listen


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print rows under columns; numbers to the right."""
    view = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(_numeric(row[index]) for row in rows)
        view.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        view.add_row(*row)
    out.print(view)


def _numeric(text: str) -> bool:
    return text == "" or text.lstrip("+-").replace(".", "").replace(",", "").split(" ")[0].isdigit()
