"""Who may do what: tokens for programs, sessions for the page, and how often.

A token is ``haq_ID_SECRET``. The database holds a SHA-256 of the secret: it is 256 random bits, so
nobody finds it by trying, and a slow hash would add nothing.
"""

import hashlib
import hmac
import re
import secrets
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv6Address, ip_address, ip_network
from typing import NamedTuple

from sqlalchemy import Engine, delete, func, insert, select, update

from haq.errors import HaqError, look_up
from haq.service.database import reading
from haq.service.tables import SESSIONS, TOKENS, now

SCOPES = {"read": 0, "submit": 1, "admin": 2}
"""What a token allows, each what those before it do too."""

SESSION_S = 12 * 3600.0

_TOKEN = re.compile(r"haq_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


class Principal(NamedTuple):
    """Whoever asks.

    Attributes:
        name: Of the user; runs belong to it.
        scope: One of ``SCOPES``.
        csrf: What a form or script of the page must send along; None for programs.
    """

    name: str
    scope: str
    csrf: str | None = None

    def may(self, scope: str) -> bool:
        """Return whether what needs this scope is allowed."""
        return SCOPES[self.scope] >= SCOPES[scope]

    @property
    def sees(self) -> str | None:
        """Whose runs are shown: None for everyone's."""
        return None if self.scope == "admin" else self.name


class Token(NamedTuple):
    """A row of the table of tokens, without the hash."""

    id: str
    name: str
    scope: str
    created: float
    revoked: float | None


def create_token(engine: Engine, name: str, scope: str = "submit") -> str:
    """Return a new token, which is shown this once.

    Args:
        engine: The database.
        name: Of the user; one may have several tokens, so that they can be rotated.
        scope: One of ``SCOPES``.

    Raises:
        HaqError: The name or the scope cannot be.
    """
    look_up(SCOPES, "scope", scope)
    if not _NAME.fullmatch(name):
        raise HaqError(
            f"name {name!r}: give up to 64 letters, digits, dots, dashes, underscores or @"
        )
    token_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    with engine.begin() as connection:
        connection.execute(
            insert(TOKENS).values(
                id=token_id, name=name, hash=_hash(secret), scope=scope, created=now()
            )
        )
    return f"haq_{token_id}_{secret}"


def tokens(engine: Engine) -> list[Token]:
    """Return all tokens, the oldest first."""
    columns = (TOKENS.c[name] for name in Token._fields)
    with reading(engine) as connection:
        return [Token(*row) for row in connection.execute(select(*columns).order_by("created"))]


def revoke(engine: Engine, name: str) -> list[str]:
    """Revoke a token by its id, or all of a user, with their sessions; return the ids.

    Raises:
        HaqError: There is none that is not revoked.
    """
    with engine.begin() as connection:
        ids = connection.scalars(
            select(TOKENS.c.id).where(
                (TOKENS.c.id == name) | (TOKENS.c.name == name), TOKENS.c.revoked.is_(None)
            )
        ).all()
        if not ids:
            raise HaqError(f"no token {name!r} is in use; haq token list shows all")
        connection.execute(update(TOKENS).where(TOKENS.c.id.in_(ids)).values(revoked=now()))
        connection.execute(delete(SESSIONS).where(SESSIONS.c.token_id.in_(ids)))
    return list(ids)


def by_token(engine: Engine, text: str) -> tuple[Principal, str] | None:
    """Return who has a token, and its id; None where it is none or is revoked."""
    match = _TOKEN.fullmatch(text)
    if not match:
        return None
    with reading(engine) as connection:
        row = connection.execute(
            select(TOKENS.c.name, TOKENS.c.scope, TOKENS.c.hash).where(
                TOKENS.c.id == match[1], TOKENS.c.revoked.is_(None)
            )
        ).first()
    if row is None or not hmac.compare_digest(row.hash, _hash(match[2])):
        return None
    return Principal(row.name, row.scope), match[1]


def open_session(engine: Engine, token_id: str) -> str:
    """Return the cookie of a new session of the page."""
    cookie = secrets.token_urlsafe(32)
    with engine.begin() as connection:
        connection.execute(delete(SESSIONS).where(SESSIONS.c.expires < now()))
        connection.execute(
            insert(SESSIONS).values(
                hash=_hash(cookie), token_id=token_id, csrf=secrets.token_urlsafe(32),
                expires=now() + SESSION_S,
            )
        )  # fmt: skip
    return cookie


def by_session(engine: Engine, cookie: str) -> Principal | None:
    """Return whose session this is; None where there is none any more."""
    with reading(engine) as connection:
        row = connection.execute(
            select(TOKENS.c.name, TOKENS.c.scope, SESSIONS.c.csrf)
            .join_from(SESSIONS, TOKENS)
            .where(
                SESSIONS.c.hash == _hash(cookie),
                SESSIONS.c.expires > now(),
                TOKENS.c.revoked.is_(None),
            )
        ).first()
    return None if row is None else Principal(*row)


def close_session(engine: Engine, cookie: str) -> None:
    """End a session."""
    with engine.begin() as connection:
        connection.execute(delete(SESSIONS).where(SESSIONS.c.hash == _hash(cookie)))


def same(one: str, other: str) -> bool:
    """Return whether two secrets are the same, in the same time whether or not."""
    return hmac.compare_digest(one.encode(), other.encode())


def is_open(engine: Engine, host: str, allowed: bool) -> bool:
    """Return whether everyone who reaches the service may do everything: there are no tokens.

    Args:
        engine: The database.
        host: Where the service listens.
        allowed: Whether the operator allows it beyond this machine.

    Raises:
        HaqError: The service would be open beyond this machine and nobody said so, or is to be
            open although there are tokens.
    """
    with reading(engine) as connection:
        exist = bool(connection.scalar(select(func.count()).select_from(TOKENS)))
    if exist and allowed:
        raise HaqError("there are tokens, so the service is not open: leave out --open")
    if not exist and not allowed and not is_loopback(host):
        raise HaqError(
            f"host {host} can be reached from other machines and there are no tokens: "
            "make one with haq token create NAME, or say --open to let everyone in"
        )
    return not exist


LOOPBACK: Sequence[str] = ("127.0.0.1", "localhost", "::1", "[::1]")


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches what listens at ``host``."""
    return host in LOOPBACK


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def network_of(address: str) -> str:
    """Return what an address is counted under: of IPv6 the network that one line is given.

    >>> network_of("192.0.2.7"), network_of("2001:db8:1:2:3:4:5:6"), network_of("::ffff:192.0.2.7")
    ('192.0.2.7', '2001:db8:1:2::/64', '192.0.2.7')
    """
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        mapped = parsed.ipv4_mapped
        return str(mapped or ip_network((parsed, 64), strict=False))
    return str(parsed)


class Gate:
    """How many may do something at once, in all and of one user."""

    def __init__(self, most: int, each: int) -> None:
        self._most, self._each = most, each
        self._inside: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def passed(self, who: str) -> Iterator[str]:
        """Give "passed" and hold the place until the end; or "each" or "all", which is used up."""
        with self._lock:
            is_full = self._inside.total() >= self._most
            answer = "each" if self._inside[who] >= self._each else "all" if is_full else "passed"
            self._inside[who] += answer == "passed"
        try:
            yield answer
        finally:
            with self._lock:
                self._inside[who] -= answer == "passed"
                self._inside += Counter()  # without those who have nothing inside


class Buckets:
    """How often someone may do something: so many at once, and so many a second after that."""

    def __init__(self, at_once: float, a_second: float, most: int = 10_000) -> None:
        self._at_once, self._rate, self._most = at_once, a_second, most
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, who: str, moment: float | None = None) -> float:
        """Take one, and return 0; or the seconds to wait where there is none left.

        >>> buckets = Buckets(at_once=2, a_second=0.5)
        >>> [buckets.take("ada", moment=0) for _ in range(3)], buckets.take("ada", moment=2)
        ([0.0, 0.0, 2.0], 0.0)
        """
        moment = time.monotonic() if moment is None else moment
        left = self.left(who, moment)
        enough = left >= 1
        self._left[who] = (left - 1 if enough else left, moment)
        self._left.move_to_end(who)
        while len(self._left) > self._most:
            self._left.popitem(last=False)
        return 0.0 if enough else (1 - left) / self._rate

    def left(self, who: str, moment: float | None = None) -> float:
        """Return how many are left."""
        moment = time.monotonic() if moment is None else moment
        left, since = self._left.get(who, (self._at_once, moment))
        return min(self._at_once, left + (moment - since) * self._rate)
