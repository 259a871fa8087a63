"""The page: forms and tables made by the server, kept up to date by one script of its own."""

from fastapi import APIRouter

from haq.service.pages import channels, compare, new, runs, sign_in, static

router = APIRouter(include_in_schema=False)
for part in (sign_in, runs, new, compare, channels, static):
    router.include_router(part.router)
