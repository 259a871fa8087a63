"""The service: searches over HTTP, kept in a database, done by workers.

settings, limits    what the operator decides, and how much one request or user may take
tables, database    the tables, and how they are reached; migrations/ brings older ones up to date
store/              every read and write of a run's row and events, each in one transaction
routes/, pages/     the HTTP API and the page over it; shared has what their requests share
checks, submission  from what a user asks for to a run in the queue
estimates, findings when a run that waits begins, and what one that ended found, in few words
log, snippet        what a search says, and code that runs its network
hooks               URLs that are told when a run ends
uploads, unpack     what users bring along, looked at before it is used
worker, watch       takes runs, one at a time, and follows the process of each to its outcome
searching           the process in which one search runs
processes, cluster  workers as processes, beside the server or in a Ray cluster
serve, sockets      the commands that serve, and the connections of the server
upkeep              the commands that look after it: tokens; backup, restore; retention
"""
