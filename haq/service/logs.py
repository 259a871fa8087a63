"""Log lines as JSON, one object a line on standard error, without secrets.

Nobody logs headers, bodies or query strings; passwords in a database's URL are hidden here too.
"""

import json
import logging
import re
import sys
import time

_SECRETS = re.compile(r"(?<=://)[^/@:\s]*:\S+@|haq_[0-9a-f]+_[\w-]+")
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON, with whatever was given as ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
        }
        line |= {key: value for key, value in vars(record).items() if key not in _OWN}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps({key: _clean(value) for key, value in line.items()})


def _clean(value: object) -> object:
    if value is None or isinstance(value, int | float):
        return value
    return _SECRETS.sub("***", str(value))


def to_standard_error(level: int = logging.INFO) -> None:
    """Send the log lines of this process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for chatty in ("alembic", "uvicorn.access", "sqlalchemy"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
