"""Tests that messages of other libraries are hidden only where, and as long as, requested."""

import logging

from mlflow_tfmon.noise import hushed


def test_only_that_logger_only_below_that_level_and_only_meanwhile(caplog):
    caplog.set_level(logging.INFO)
    theirs, users = logging.getLogger("of.others"), logging.getLogger("of.the_user")
    with hushed("of.others", below=logging.ERROR):
        theirs.warning("one")
        theirs.error("two")
        users.info("three")
    theirs.warning("four")
    assert caplog.messages == ["two", "three", "four"]
