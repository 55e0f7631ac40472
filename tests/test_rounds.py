"""Work that is done again and again: no error ends it, and a stop does."""

import threading
from datetime import timedelta

import pytest
import sqlalchemy as sa

from webapp.rounds import Rounds

PATIENCE = 20


class Stumbling(Rounds):
    """Fails in its first round, and tells of its third."""

    name = "stumbling"

    def __init__(self, error: Exception) -> None:
        super().__init__(timedelta(milliseconds=1))
        self.error = error
        self.count = 0
        self.third = threading.Event()

    def work(self) -> None:
        self.count += 1
        if self.count == 1:
            raise self.error
        if self.count == 3:
            self.third.set()


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("a bug"), sa.exc.OperationalError("SELECT", {}, Exception("away"))]
)
def test_an_error_ends_the_round_and_not_the_work(error: Exception) -> None:
    rounds = Stumbling(error)
    rounds.start()
    assert rounds.third.wait(PATIENCE)
    rounds.stop()
    done = rounds.count
    assert not [thread for thread in threading.enumerate() if thread.name == "stumbling"]
    rounds.stop()
    assert rounds.count == done


def test_it_can_begin_again() -> None:
    rounds = Stumbling(ZeroDivisionError())
    rounds.start()
    rounds.stop()
    rounds.start()
    assert rounds.third.wait(PATIENCE)
    rounds.stop()
