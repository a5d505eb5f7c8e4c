"""Progress bars with rate and time left."""

from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from cnnjax.runtime import Progress

Bar = Callable[[str, str], Progress]
"""What gives a new bar for a description and a unit: `Bars.bar`, or what hands its reports on to one."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} {task.fields['unit']}/s" if speed else "", style="progress.data.speed")


class Bars:
    """A context in which work shows bars; each `bar` is a callback for (done, total).

    Example:
        >>> with Bars(Console(quiet=True)) as bars:
        ...     report = bars.bar("features", "images")
        ...     report(32, 2000)
    """

    def __init__(self, console: Console | None = None):
        self.console = console or Console()
        self._progress = RichProgress(
            TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), _Rate(),
            TimeRemainingColumn(compact=True), console=self.console, transient=True,
        )  # fmt: skip

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def bar(self, description: str, unit: str) -> Progress:
        """A new bar; it shows with the first report and goes away when its work is done."""
        task = self._progress.add_task(description, total=None, unit=unit, visible=False)

        def report(done: int, total: int) -> None:
            self._progress.update(task, completed=done, total=total, visible=done < total)

        return report
