"""Writes rows and says which were committed, or counts them. Runs inside.

    rows.py write DATABASE    print a number after its commit, for ever
    rows.py count DATABASE    print how many rows there are, and the largest

DATABASE is `postgres` or the path of an SQLite database.
"""

import sqlite3
import sys

import psycopg2

action, database = sys.argv[1:]
if database == "postgres":
    connection = psycopg2.connect("user=postgres host=127.0.0.1")
    insert = "insert into numbers values (%s)"
else:
    connection = sqlite3.connect(database)
    connection.execute("pragma journal_mode = wal")
    connection.execute("pragma synchronous = full")
    insert = "insert into numbers values (?)"
cursor = connection.cursor()
cursor.execute("create table if not exists numbers (n bigint primary key)")
connection.commit()
cursor.execute("select count(*), coalesce(max(n), 0) from numbers")
count, largest = cursor.fetchone()
if action == "count":
    print(count, largest)
else:
    while True:
        largest += 1
        cursor.execute(insert, (largest,))
        connection.commit()
        print(largest, flush=True)
