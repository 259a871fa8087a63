"""The page: forms and tables made by the server, kept up to date by one script of its own."""

from fastapi import APIRouter

from haq.service.pages import api, channels, compare, home, new, runs, sign_in, static, uploads

router = APIRouter(include_in_schema=False)
for part in (sign_in, home, runs, new, compare, uploads, channels, api, static):
    router.include_router(part.router)
