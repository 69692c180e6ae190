"""Postgres: tables, sessions, migrations."""
