"""The link to a mailbox: registrations, mailboxes, grants; recipients a day as a limit."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
WHEN = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Add the tables, and what connections and lanes gain."""
    create_tables()
    op.add_column("lane", sa.Column("recipients_per_day", sa.Integer(), nullable=True))
    with op.batch_alter_table("connection") as batch:
        batch.add_column(sa.Column("grant_id", BIG_ID, nullable=True))
        batch.create_foreign_key(
            op.f("fk_connection_grant_id_grant"), "grant", ["grant_id"], ["id"], ondelete="SET NULL"
        )
    op.create_index(op.f("ix_connection_grant_id"), "connection", ["grant_id"], unique=False)


def create_tables() -> None:
    """The tables of the link."""
    op.create_table(
        "mailbox",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("cloud", sa.String(length=20), nullable=False),
        sa.Column("tenant_id", sa.String(length=64), nullable=False),
        sa.Column("object_id", sa.String(length=64), nullable=False),
        sa.Column("address", sa.String(length=320), nullable=False),
        sa.Column("sign_in_name", sa.String(length=320), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("addresses", sa.JSON(), nullable=False),
        sa.Column("lane_id", BIG_ID, nullable=True),
        sa.Column("created_at", WHEN, nullable=False),
        sa.Column("updated_at", WHEN, nullable=False),
        sa.ForeignKeyConstraint(["lane_id"], ["lane.id"], name=op.f("fk_mailbox_lane_id_lane")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_mailbox")),
        sa.UniqueConstraint(
            "cloud", "tenant_id", "object_id", name=op.f("uq_mailbox_cloud_tenant_id_object_id")
        ),
    )
    op.create_table(
        "oauth_app",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("uid", sa.String(length=20), nullable=False),
        sa.Column("connection_id", BIG_ID, nullable=True),
        sa.Column("name", sa.String(length=120), nullable=False),
        sa.Column("cloud", sa.String(length=20), nullable=False),
        sa.Column("tenant", sa.String(length=255), nullable=False),
        sa.Column("client_id", sa.String(length=64), nullable=False),
        sa.Column("secret", sa.Text(), nullable=True),
        sa.Column("secret_set_at", WHEN, nullable=True),
        sa.Column("secret_set_by", sa.String(length=320), nullable=False),
        sa.Column("secret_expires_on", sa.Date(), nullable=True),
        sa.Column("problem_code", sa.String(length=40), nullable=False),
        sa.Column("problem_words", sa.Text(), nullable=False),
        sa.Column("problem_since", WHEN, nullable=True),
        sa.Column("created_at", WHEN, nullable=False),
        sa.Column("updated_at", WHEN, nullable=False),
        sa.ForeignKeyConstraint(
            ["connection_id"],
            ["connection.id"],
            name=op.f("fk_oauth_app_connection_id_connection"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_oauth_app")),
        sa.UniqueConstraint("connection_id", name=op.f("uq_oauth_app_connection_id")),
        sa.UniqueConstraint("uid", name=op.f("uq_oauth_app_uid")),
    )
    op.create_table(
        "grant",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("app_id", BIG_ID, nullable=False),
        sa.Column("mailbox_id", BIG_ID, nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("cache", sa.Text(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.String(length=64), nullable=False),
        sa.Column("lease_until", WHEN, nullable=True),
        sa.Column("state", sa.String(length=30), nullable=False),
        sa.Column("state_since", WHEN, nullable=False),
        sa.Column("code", sa.String(length=40), nullable=False),
        sa.Column("words", sa.Text(), nullable=False),
        sa.Column("renewed_at", WHEN, nullable=False),
        sa.Column("renew_at", WHEN, nullable=False),
        sa.ForeignKeyConstraint(
            ["app_id"], ["oauth_app.id"], name=op.f("fk_grant_app_id_oauth_app"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["mailbox_id"],
            ["mailbox.id"],
            name=op.f("fk_grant_mailbox_id_mailbox"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_grant")),
        sa.UniqueConstraint("app_id", "mailbox_id", name=op.f("uq_grant_app_id_mailbox_id")),
    )
    op.create_index(op.f("ix_grant_mailbox_id"), "grant", ["mailbox_id"], unique=False)
    op.create_index(op.f("ix_grant_renew_at"), "grant", ["renew_at"], unique=False)
    op.create_table(
        "link_flow",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=10), nullable=False),
        sa.Column("connection_id", BIG_ID, nullable=False),
        sa.Column("app_id", BIG_ID, nullable=False),
        sa.Column("user_id", BIG_ID, nullable=False),
        sa.Column("data", sa.Text(), nullable=True),
        sa.Column("outcome", sa.String(length=20), nullable=False),
        sa.Column("code", sa.String(length=40), nullable=False),
        sa.Column("words", sa.Text(), nullable=False),
        sa.Column("created_at", WHEN, nullable=False),
        sa.Column("expires_at", WHEN, nullable=False),
        sa.ForeignKeyConstraint(
            ["app_id"],
            ["oauth_app.id"],
            name=op.f("fk_link_flow_app_id_oauth_app"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["connection_id"],
            ["connection.id"],
            name=op.f("fk_link_flow_connection_id_connection"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["user.id"], name=op.f("fk_link_flow_user_id_user"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_link_flow")),
        sa.UniqueConstraint("digest", name=op.f("uq_link_flow_digest")),
    )
    op.create_index(
        op.f("ix_link_flow_connection_id"), "link_flow", ["connection_id"], unique=False
    )
    op.create_index(op.f("ix_link_flow_expires_at"), "link_flow", ["expires_at"], unique=False)
    op.create_table(
        "link",
        sa.Column("connection_id", BIG_ID, nullable=False),
        sa.Column("app_id", BIG_ID, nullable=False),
        sa.Column("grant_id", BIG_ID, nullable=False),
        sa.Column("linked_at", WHEN, nullable=False),
        sa.Column("linked_by", sa.String(length=320), nullable=False),
        sa.ForeignKeyConstraint(
            ["app_id"], ["oauth_app.id"], name=op.f("fk_link_app_id_oauth_app"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["connection_id"],
            ["connection.id"],
            name=op.f("fk_link_connection_id_connection"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["grant_id"], ["grant.id"], name=op.f("fk_link_grant_id_grant"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("connection_id", "app_id", name=op.f("pk_link")),
    )
    op.create_index(op.f("ix_link_grant_id"), "link", ["grant_id"], unique=False)
