"""All tables of the first release."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0001'
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('api_keys',
    sa.Column('id', sa.Integer(), nullable=False),
    sa.Column('name', sa.String(), nullable=False),
    sa.Column('hash', sa.String(), nullable=False),
    sa.Column('shown', sa.String(), nullable=False),
    sa.Column('role', sa.String(), nullable=False),
    sa.Column('models', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text('\'["*"]\'::jsonb'), nullable=False),
    sa.Column('requests_per_minute', sa.Integer(), nullable=False),
    sa.Column('tokens_per_minute', sa.Integer(), nullable=False),
    sa.Column('concurrency', sa.Integer(), nullable=False),
    sa.Column('tokens_per_day', sa.BigInteger(), nullable=False),
    sa.Column('tokens_per_month', sa.BigInteger(), nullable=False),
    sa.Column('networks', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'::jsonb"), nullable=False),
    sa.Column('priority', sa.Integer(), nullable=False),
    sa.Column('created_by', sa.String(), nullable=True),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('expires_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('revoked_at', sa.DateTime(timezone=True), nullable=True),
    sa.CheckConstraint("role IN ('admin', 'operator', 'viewer', 'user')", name='api_keys_role'),
    sa.PrimaryKeyConstraint('id'),
    sa.UniqueConstraint('hash')
    )
    op.create_index(op.f('ix_api_keys_name'), 'api_keys', ['name'], unique=False)
    op.create_table('audit',
    sa.Column('id', sa.Integer(), nullable=False),
    sa.Column('at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('actor', sa.String(), nullable=False),
    sa.Column('action', sa.String(), nullable=False),
    sa.Column('target', sa.String(), nullable=False),
    sa.Column('detail', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False),
    sa.PrimaryKeyConstraint('id')
    )
    op.create_table('fleet',
    sa.Column('id', sa.Integer(), nullable=False),
    sa.Column('fleet', sa.String(), nullable=False),
    sa.Column('manifest_epoch', sa.Integer(), nullable=False),
    sa.Column('routes_epoch', sa.Integer(), nullable=False),
    sa.Column('keyring_version', sa.Integer(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.CheckConstraint('id = 1', name='fleet_is_one_row'),
    sa.PrimaryKeyConstraint('id')
    )
    op.create_table('models',
    sa.Column('id', sa.Integer(), nullable=False),
    sa.Column('name', sa.String(), nullable=False),
    sa.Column('served_model_name', sa.String(), nullable=False),
    sa.Column('aliases', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'::jsonb"), nullable=False),
    sa.Column('task', sa.String(), nullable=False),
    sa.Column('engine_type', sa.String(), nullable=False),
    sa.Column('engine_version', sa.String(), nullable=True),
    sa.Column('engine_image', sa.String(), nullable=True),
    sa.Column('mode', sa.String(), nullable=False),
    sa.Column('replicas', sa.Integer(), nullable=False),
    sa.Column('settings', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False),
    sa.Column('placement', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False),
    sa.Column('policy', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False),
    sa.Column('hf_token_encrypted', sa.LargeBinary(), nullable=True),
    sa.Column('desired_state', sa.String(), nullable=False),
    sa.Column('deleting', sa.Boolean(), nullable=False),
    sa.Column('generation', sa.Integer(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('updated_at', sa.DateTime(timezone=True), nullable=False),
    sa.CheckConstraint("desired_state IN ('stopped', 'running')", name='models_desired_state'),
    sa.CheckConstraint('replicas >= 0 AND replicas <= 1024', name='models_replicas'),
    sa.PrimaryKeyConstraint('id'),
    sa.UniqueConstraint('name')
    )
    op.create_index(op.f('ix_models_served_model_name'), 'models', ['served_model_name'], unique=False)
    op.create_index('models_served_name_routed', 'models', ['served_model_name'], unique=True, postgresql_where=sa.text("desired_state = 'running'"))
    op.create_table('nodes',
    sa.Column('name', sa.String(), nullable=False),
    sa.Column('labels', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False),
    sa.Column('cordoned', sa.Boolean(), nullable=False),
    sa.Column('invited_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('first_heard_at', sa.DateTime(timezone=True), nullable=True),
    sa.PrimaryKeyConstraint('name')
    )
    op.create_table('usage',
    sa.Column('request_id', sa.String(), nullable=False),
    sa.Column('started_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('gateway', sa.String(), nullable=False),
    sa.Column('key_id', sa.Integer(), nullable=True),
    sa.Column('key_name', sa.String(), nullable=True),
    sa.Column('model_id', sa.Integer(), nullable=False),
    sa.Column('route', sa.String(), nullable=False),
    sa.Column('instance', sa.String(), nullable=True),
    sa.Column('path', sa.String(), nullable=False),
    sa.Column('stream', sa.Boolean(), nullable=False),
    sa.Column('status', sa.Integer(), nullable=False),
    sa.Column('outcome', sa.String(), nullable=False),
    sa.Column('source', sa.String(), nullable=False),
    sa.Column('prompt_tokens', sa.Integer(), nullable=False),
    sa.Column('completion_tokens', sa.Integer(), nullable=False),
    sa.Column('cached_tokens', sa.Integer(), nullable=False),
    sa.Column('first_token_seconds', sa.Float(), nullable=True),
    sa.Column('duration_seconds', sa.Float(), nullable=False),
    sa.Column('attempts', sa.Integer(), nullable=False),
    sa.PrimaryKeyConstraint('request_id')
    )
    op.create_index('usage_by_key', 'usage', ['key_id', 'started_at'], unique=False)
    op.create_index('usage_by_time', 'usage', ['started_at'], unique=False)
    op.create_table('instances',
    sa.Column('id', sa.String(), nullable=False),
    sa.Column('model_id', sa.Integer(), nullable=False),
    sa.Column('node', sa.String(), nullable=False),
    sa.Column('ordinal', sa.Integer(), nullable=False),
    sa.Column('gpus', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'::jsonb"), nullable=False),
    sa.Column('desired', sa.String(), nullable=False),
    sa.Column('generation', sa.Integer(), nullable=False),
    sa.Column('model_generation', sa.Integer(), nullable=False),
    sa.Column('plan', postgresql.JSONB(astext_type=sa.Text()), nullable=False),
    sa.Column('plan_hash', sa.String(), nullable=False),
    sa.Column('memory_mib', sa.Integer(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('changed_at', sa.DateTime(timezone=True), nullable=False),
    sa.CheckConstraint("desired IN ('run', 'stop')", name='instances_desired'),
    sa.CheckConstraint('generation >= 1', name='instances_generation'),
    sa.ForeignKeyConstraint(['model_id'], ['models.id'], ),
    sa.PrimaryKeyConstraint('id')
    )
    op.create_index(op.f('ix_instances_model_id'), 'instances', ['model_id'], unique=False)
    op.create_index(op.f('ix_instances_node'), 'instances', ['node'], unique=False)


def downgrade() -> None:
    op.drop_index(op.f('ix_instances_node'), table_name='instances')
    op.drop_index(op.f('ix_instances_model_id'), table_name='instances')
    op.drop_table('instances')
    op.drop_index('usage_by_time', table_name='usage')
    op.drop_index('usage_by_key', table_name='usage')
    op.drop_table('usage')
    op.drop_table('nodes')
    op.drop_index('models_served_name_routed', table_name='models', postgresql_where=sa.text("desired_state = 'running'"))
    op.drop_index(op.f('ix_models_served_model_name'), table_name='models')
    op.drop_table('models')
    op.drop_table('fleet')
    op.drop_table('audit')
    op.drop_index(op.f('ix_api_keys_name'), table_name='api_keys')
    op.drop_table('api_keys')
