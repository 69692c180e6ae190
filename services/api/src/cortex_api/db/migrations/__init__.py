"""Alembic's migrations, inside the package.

`REVISIONS` names them in order, so that a start need not load Alembic to see that there is nothing to do.
"""

REVISIONS = ("0001", "0002", "0003")
