"""Loggers as they were: a command inside a test sets them up for its own console."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

NAMES = ("paire", "distributed", "asyncio", "tornado")


@contextmanager
def restored_loggers() -> Iterator[None]:
    """Give the loggers that commands set up their levels and handlers back when the block ends."""
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    try:
        yield
    finally:
        for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
            logger.setLevel(level)
            logger.propagate = propagate
            logger.handlers = handlers
