"""Rules, backups, what is kept and for how long; notices that somebody has put away."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
WHEN = sa.DateTime(timezone=True)
DETOURS = sa.text("detour IS NOT NULL AND due_at IS NOT NULL")


def upgrade() -> None:
    """Add the tables, and columns whose defaults need no table to be made anew, but for one.

    Sites that are there keep their log for ever, as before; new ones begin with finite times.
    """
    create_tables()
    for name, kind, default in (
        ("redirect_to", sa.String(length=320), ""),
        ("patience_minutes", sa.Integer(), "10"),
        ("routing_enabled", sa.Boolean(), sa.false()),
        ("routing_version", sa.Integer(), "1"),
        ("setup_step", sa.String(length=20), ""),
    ):
        op.add_column("site", sa.Column(name, kind, server_default=default, nullable=False))
    for name in ("per_minute", "per_hour", "per_day", "log_days", "body_days", "details_days"):
        op.add_column("site", sa.Column(name, sa.Integer(), nullable=True))
    op.add_column("site", sa.Column("routing_changed_at", WHEN, nullable=True))
    op.add_column("site", sa.Column("deleted_at", WHEN, nullable=True))
    op.add_column("connection", sa.Column("deleted_at", WHEN, nullable=True))
    op.add_column(
        "lane", sa.Column("is_paused", sa.Boolean(), server_default=sa.false(), nullable=False)
    )
    for table in ("oauth_app", "mailbox"):
        op.add_column(
            table,
            sa.Column("provider", sa.String(length=20), server_default="microsoft", nullable=False),
        )
    # A connection may bring a registration for each provider; ids of Google's are longer.
    with op.batch_alter_table("oauth_app") as batch:
        batch.drop_constraint(op.f("uq_oauth_app_connection_id"), type_="unique")
        batch.create_unique_constraint(
            op.f("uq_oauth_app_connection_id_provider"), ["connection_id", "provider"]
        )
        batch.alter_column(
            "client_id",
            existing_type=sa.String(length=64),
            type_=sa.String(length=255),
            existing_nullable=False,
        )
    op.add_column("message", sa.Column("planned_id", BIG_ID, nullable=True))
    op.add_column("message", sa.Column("routed_version", sa.Integer(), nullable=True))
    op.add_column("message", sa.Column("detour", sa.JSON(), nullable=True))
    # What waits may follow the rules from now on; a test, or what asked for a connection, never does.
    op.execute(
        "UPDATE message SET planned_id = connection_id, routed_version = CASE WHEN "
        "source = 'test' OR coalesce(why ->> 'code', '') = 'asked' THEN NULL ELSE 0 END "
        "WHERE due_at IS NOT NULL"
    )
    op.create_index(
        "ix_message_detour",
        "message",
        ["id"],
        unique=False,
        sqlite_where=DETOURS,
        postgresql_where=DETOURS,
    )


def create_tables() -> None:
    """The tables."""
    op.create_table(
        "rule",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("uid", sa.String(length=20), nullable=False),
        sa.Column("site_id", BIG_ID, nullable=False),
        sa.Column("kind", sa.String(length=10), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("connection_id", BIG_ID, nullable=True),
        sa.Column("action", sa.String(length=10), server_default="", nullable=False),
        sa.Column("groups", sa.JSON(), nullable=False),
        sa.Column("created_at", WHEN, nullable=False),
        sa.Column("updated_at", WHEN, nullable=False),
        sa.ForeignKeyConstraint(
            ["connection_id"],
            ["connection.id"],
            name=op.f("fk_rule_connection_id_connection"),
            ondelete="SET NULL",
        ),
        sa.ForeignKeyConstraint(
            ["site_id"], ["site.id"], name=op.f("fk_rule_site_id_site"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rule")),
        sa.UniqueConstraint("uid", name=op.f("uq_rule_uid")),
    )
    op.create_index(op.f("ix_rule_connection_id"), "rule", ["connection_id"], unique=False)
    op.create_index("ix_rule_site", "rule", ["site_id", "kind", "position"], unique=False)
    op.create_table(
        "backup",
        sa.Column("site_id", BIG_ID, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("connection_id", BIG_ID, nullable=False),
        sa.ForeignKeyConstraint(
            ["connection_id"],
            ["connection.id"],
            name=op.f("fk_backup_connection_id_connection"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["site_id"], ["site.id"], name=op.f("fk_backup_site_id_site"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("site_id", "position", name=op.f("pk_backup")),
        sa.UniqueConstraint(
            "site_id", "connection_id", name=op.f("uq_backup_site_id_connection_id")
        ),
    )
    op.create_index(op.f("ix_backup_connection_id"), "backup", ["connection_id"], unique=False)
    op.create_table(
        "site_pace",
        sa.Column("site_id", BIG_ID, nullable=False),
        sa.Column("windows", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["site_id"], ["site.id"], name=op.f("fk_site_pace_site_id_site"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("site_id", name=op.f("pk_site_pace")),
    )
    op.create_table(
        "site_space",
        sa.Column("site_id", BIG_ID, nullable=False),
        sa.Column("mails", sa.Integer(), nullable=False),
        sa.Column("log_bytes", sa.BigInteger(), nullable=False),
        sa.Column("bodies", sa.Integer(), nullable=False),
        sa.Column("body_bytes", sa.BigInteger(), nullable=False),
        sa.Column("counted_at", WHEN, nullable=False),
        sa.ForeignKeyConstraint(
            ["site_id"], ["site.id"], name=op.f("fk_site_space_site_id_site"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("site_id", name=op.f("pk_site_space")),
    )
    op.create_table(
        "dismissal",
        sa.Column("user_id", BIG_ID, nullable=False),
        sa.Column("notice", sa.String(length=120), nullable=False),
        sa.Column("at", WHEN, nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["user.id"], name=op.f("fk_dismissal_user_id_user"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", "notice", name=op.f("pk_dismissal")),
    )
