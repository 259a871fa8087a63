"""The service: searches over HTTP, kept in a database, done by workers.

settings    what the operator decides
tables      the database's tables; migrations/ brings an older database to them
store       every read and write of a run's row and events, each in one transaction
searching   the process in which one search runs
worker      takes runs from the store, one at a time, and watches over their processes
"""
