"""A loop that stands still is written about once, with where it stands."""

import logging
import time

from headstock.observe.watchdog import Watchdog


def stand_still():
    time.sleep(0.5)


def test_a_loop_that_stands_still_is_written_about_once(caplog):
    with caplog.at_level(logging.ERROR), Watchdog("The loop", lambda: 7, limit_s=0.1):
        stand_still()
    (record,) = caplog.records
    assert "The loop has not turned" in record.getMessage()
    assert "stand_still" in record.getMessage()


def test_a_loop_that_turns_is_not(caplog):
    turns = iter(range(10**6))
    with caplog.at_level(logging.ERROR), Watchdog("The loop", lambda: next(turns), limit_s=0.02):
        stand_still()
    assert not caplog.records
