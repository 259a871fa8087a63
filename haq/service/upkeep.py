"""The commands that look after a service: tokens, backup, restore, and what is kept."""

import os
from pathlib import Path

from haq.errors import HaqError
from haq.service import backup, place, retention, security
from haq.service.database import answering, check_current, connect, migrate
from haq.service.place import PRIVATE
from haq.service.settings import Keep, Settings


def back_up(settings: Settings, folder: Path) -> str:
    """Write a backup and return a sentence about it.

    Raises:
        HaqError: Something cannot be read or written.
    """
    os.umask(PRIVATE)
    return _told(backup.backup(settings, folder.absolute()), "are in", folder)


def put_back(settings: Settings, folder: Path) -> str:
    """Put a backup into an empty service and return a sentence about it.

    Raises:
        HaqError: The service is not empty, or something cannot be read or written.
    """
    os.umask(PRIVATE)
    return _told(backup.restore(settings, folder.absolute()), "were put back from", folder)


def _told(copied: backup.Copied, verb: str, folder: Path) -> str:
    return (
        f"{copied.runs} runs and {copied.uploads} uploads ({copied.size_bytes / 1e6:,.1f} MB) "
        f"{verb} {folder}"
    )


def cleaned(settings: Settings, keep: Keep, dry: bool) -> list[str]:
    """Delete what is kept too long or is too much, and return a line for each.

    Raises:
        HaqError: Nothing says what that is, or the database does not answer.
    """
    if keep == Keep():
        raise HaqError("say what is kept: --older-than 90d, --down-to 50GB, or both")
    engine = connect(settings.url)
    place.prepare(settings, check_current(engine))
    with answering(engine):
        return [_line(one) for one in retention.clean(engine, settings, keep, dry)]


def _line(one: retention.Old) -> str:
    days, megabytes = one.age_s / 86_400, one.size_bytes / 1e6
    return f"{one.kind:<6}  {one.id}  {days:6.1f} d  {megabytes:10,.1f} MB  {one.owner}: {one.name}"


def new_token(settings: Settings, name: str, scope: str) -> str:
    """Return a new token; the database is made where there is none yet.

    Raises:
        HaqError: The name or the scope cannot be.
    """
    os.umask(PRIVATE)
    engine = connect(settings.url)
    migrate(engine)
    with answering(engine):
        return security.create_token(engine, name, scope)


def token_lines(settings: Settings) -> list[str]:
    """Return a line for every token.

    Raises:
        HaqError: The database is of another version.
    """
    engine = connect(settings.url)
    check_current(engine)
    with answering(engine):
        known = security.tokens(engine)
    return [
        f"{token.id}  {token.scope:<6}  {'revoked' if token.revoked else 'in use':<7}  {token.name}"
        for token in known
    ]


def revoke_token(settings: Settings, name: str) -> list[str]:
    """Revoke a token by its id, or all of a user; return the ids.

    Raises:
        HaqError: There is none in use.
    """
    engine = connect(settings.url)
    check_current(engine)
    with answering(engine):
        return security.revoke(engine, name)
