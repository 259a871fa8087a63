"""One thread for torch, and no clock in the properties: tests share their cores with others."""

import os
import tempfile
import uuid

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is first imported

import pytest
import sqlalchemy
import torch
from databases import postgresql
from hypothesis import settings

torch.set_num_threads(1)

_cache = tempfile.TemporaryDirectory()
os.environ["XDG_CACHE_HOME"] = _cache.name  # not the user's

settings.register_profile("haq", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("haq")


@pytest.fixture(scope="session")
def postgresql_server():
    """The URL of a PostgreSQL server, or a skip where there is none."""
    with postgresql() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path):
    """The URL of an empty database, of either kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'database' / 'haq.sqlite'}"
        return
    server = sqlalchemy.create_engine(
        request.getfixturevalue("postgresql_server"), isolation_level="AUTOCOMMIT"
    )
    name = f"haq_{uuid.uuid4().hex}"
    with server.connect() as connection:
        connection.exec_driver_sql(f"create database {name}")
    yield server.url.set(database=name).render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.exec_driver_sql(f"drop database {name} with (force)")
    server.dispose()
