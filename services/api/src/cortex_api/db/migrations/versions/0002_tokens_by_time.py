"""Sums of tokens by key are read from an index alone.

Lock timeouts are set by the caller. Expand first, contract in a later release: the previous release must
be able to run on what this leaves.
"""

from alembic import op

revision = '0002'
down_revision = '0001'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        'usage_tokens_by_time', 'usage', ['started_at'], unique=False,
        postgresql_include=['key_id', 'prompt_tokens', 'completion_tokens'],
    )
    op.drop_index('usage_by_time', table_name='usage')


def downgrade() -> None:
    op.create_index('usage_by_time', 'usage', ['started_at'], unique=False)
    op.drop_index('usage_tokens_by_time', table_name='usage')
