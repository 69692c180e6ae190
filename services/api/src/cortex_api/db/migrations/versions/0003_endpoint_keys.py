"""Keys of servers that others run are stored, encrypted; a setting that only named them goes.

Lock timeouts are set by the caller. Expand first, contract in a later release: the previous release must
be able to run on what this leaves.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0003'
down_revision = '0002'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('models', sa.Column('endpoint_keys', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False))
    op.execute(
        "UPDATE models SET settings = jsonb_set(settings, '{endpoints}',"
        " (SELECT jsonb_agg(endpoint - 'key_name' ORDER BY number)"
        " FROM jsonb_array_elements(settings->'endpoints') WITH ORDINALITY AS found(endpoint, number)))"
        " WHERE engine_type = 'external' AND jsonb_typeof(settings->'endpoints') = 'array'"
        " AND jsonb_array_length(settings->'endpoints') > 0"
    )


def downgrade() -> None:
    op.drop_column('models', 'endpoint_keys')
