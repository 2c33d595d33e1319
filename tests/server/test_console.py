"""What the commands that work for minutes say on the way."""

from io import StringIO

import pytest
import typer
from rich.console import Console

from server.console import INTERRUPTED, explained, shown
from steering.building.progress import tracked
from steering.errors import InvalidPairs


def test_in_a_log_every_stage_says_when_it_begins_and_when_it_ends() -> None:
    log = StringIO()
    with shown(Console(file=log)) as progress:
        for _ in tracked(range(3), "evaluation", progress):
            assert log.getvalue() == "evaluation: 0 of 3 done\n"
    assert log.getvalue() == "evaluation: 0 of 3 done\nevaluation: 3 of 3 done\n"


def test_a_log_shows_a_sign_of_life_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    log, now = StringIO(), [1000.0]
    monkeypatch.setattr("server.console.time.monotonic", lambda: now[0])
    with shown(Console(file=log)) as progress:
        for _ in tracked(range(5), "evaluation", progress):
            now[0] += 25
    assert log.getvalue().split(" of 5 done\n") == ["evaluation: 0", "evaluation: 3", "evaluation: 5", ""]


@pytest.mark.parametrize(
    ("raised", "said", "code"),
    [
        (InvalidPairs("line 3 is empty"), "error: line 3 is empty\n", 1),
        (KeyboardInterrupt(), "interrupted; nothing was lost\n", INTERRUPTED),
    ],
)
def test_a_command_ends_with_a_sentence(raised: BaseException, said: str, code: int) -> None:
    log = StringIO()
    console = Console(file=log)
    with pytest.raises(typer.Exit) as ended, explained(console, "nothing was lost"):
        raise raised
    assert (log.getvalue(), ended.value.exit_code) == (said, code)
