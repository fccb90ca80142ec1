"""The log of a replica: Serve's own file and form, for our lines too.

A line goes through `logging` like everybody's, save those of requests: through it each cost 60 µs, a fifth of a hit.
"""

import asyncio
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from logging.handlers import MemoryHandler, RotatingFileHandler
from typing import Any

from ray import serve
from ray._common.formatters import JSONFormatter

from deployments.http.request_log import Lines, LoggedLines

FLUSH_PERIOD_S = 1.0

_flusher: list[asyncio.Task[None]] = []  # a task nobody holds may be collected


def configure_logging(level: str) -> None:
    """Send this package's log through Serve's handlers: JSON, in the replica's own file.

    Call it from a coroutine of the replica: Serve buffers lines in throughput mode, and a task here flushes them each
    second, so that a quiet service's log is not an hour late.
    """
    handlers = logging.getLogger("ray.serve").handlers
    package = logging.getLogger("deployments")
    package.handlers = handlers
    package.propagate = False
    package.setLevel(level)
    _flusher.append(asyncio.create_task(_flush_for_ever(handlers)))


async def _flush_for_ever(handlers: Sequence[logging.Handler]) -> None:
    while True:
        await asyncio.sleep(FLUSH_PERIOD_S)
        for handler in handlers:
            handler.flush()


def request_lines() -> Lines:
    """What writes requests' lines in this replica. Call it after `configure_logging`, from a coroutine."""
    handlers = logging.getLogger("ray.serve").handlers
    for handler in handlers:
        target = handler.target if isinstance(handler, MemoryHandler) else handler
        if isinstance(target, RotatingFileHandler) and isinstance(target.formatter, JSONFormatter):
            return RequestLines(target, _replica(handlers))
    return LoggedLines()  # another form was asked for (`logging_config`), or another place


def _replica(handlers: Sequence[logging.Handler]) -> dict[str, Any]:
    """What Serve's filters add to each line of this replica; asking Ray for it again costs 46 µs."""
    blank = logging.makeLogRecord({})
    standard = {*vars(blank), "task_name", "task_func_name", "log_to_stderr"}  # of this moment, and of no use
    for handler in handlers:
        handler.filter(blank)
    noted = {key: value for key, value in vars(blank).items() if key not in standard and value is not None}
    return noted | {"application": serve.get_replica_context().app_name}


class RequestLines:
    """Writes requests' lines as Serve's JSON formatter would, those of a second at once.

    Args:
        file: Serve's log file of this replica.
        replica: What each line says of the replica.
    """

    def __init__(self, file: RotatingFileHandler, replica: Mapping[str, Any]) -> None:
        self._file = file
        file.setFormatter(_Ready(file.formatter))
        self._enabled = logging.getLogger("deployments").isEnabledFor(logging.INFO)
        constant = {"levelname": "INFO", "process": os.getpid(), **replica}
        self._constant = json.dumps(constant)[1:-1]  # written once, not with every line
        self._second, self._second_text = 0, ""
        self._lines: list[str] = []
        self._writing = asyncio.create_task(self._write_for_ever())

    def write(self, message: str, fields: Mapping[str, Any]) -> None:
        """Have a line written within a second."""
        if not self._enabled:
            return
        now_ns = time.time_ns()
        line = {
            "message": message,
            "request_id": fields["http_request_id"],
            **fields,
            "timestamp_ns": now_ns,
        }
        self._lines.append(f'{{"asctime": "{self._asctime(now_ns)}", {self._constant}, {json.dumps(line)[1:]}')

    def _asctime(self, now_ns: int) -> str:
        second, rest_ns = divmod(now_ns, 1_000_000_000)
        if second != self._second:
            self._second, self._second_text = second, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
        return f"{self._second_text},{rest_ns // 1_000_000:03d}"

    async def _write_for_ever(self) -> None:
        try:
            while True:
                await asyncio.sleep(FLUSH_PERIOD_S)
                self._flush()
        finally:
            self._flush()

    def _flush(self) -> None:
        if self._lines:
            lines, self._lines = self._lines, []
            self._file.handle(logging.makeLogRecord({"msg": "\n".join(lines), _READY: True}))


_READY = "is_ready"


class _Ready(logging.Formatter):
    """Leaves lines that are ready as they are."""

    def __init__(self, formatter: logging.Formatter | None) -> None:
        super().__init__()
        self._formatter = formatter or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        return str(record.msg) if hasattr(record, _READY) else self._formatter.format(record)
