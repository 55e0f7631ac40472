"""Incidents and who is told; answers of the API; a second secret; breaker and look-ups."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
WHEN = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Add the tables, and columns whose defaults need no table to be made anew."""
    create_tables()
    op.add_column("oauth_app", sa.Column("next_secret", sa.Text(), nullable=True))
    op.add_column("oauth_app", sa.Column("next_secret_set_at", WHEN, nullable=True))
    op.add_column(
        "oauth_app",
        sa.Column("next_secret_set_by", sa.String(length=320), server_default="", nullable=False),
    )
    op.add_column("oauth_app", sa.Column("next_secret_expires_on", sa.Date(), nullable=True))
    op.add_column(
        "connection",
        sa.Column("is_system", sa.Boolean(), server_default=sa.false(), nullable=False),
    )
    op.add_column("site", sa.Column("silent_hours", sa.Integer(), nullable=True))
    op.add_column("lane", sa.Column("trips", sa.Integer(), server_default="0", nullable=False))
    op.add_column("message", sa.Column("looks", sa.Integer(), server_default="0", nullable=False))


def create_tables() -> None:
    """The tables."""
    op.create_table(
        "incident",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("uid", sa.String(length=20), nullable=False),
        sa.Column("cause", sa.String(length=200), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("code", sa.String(length=40), nullable=False),
        sa.Column("words", sa.Text(), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("opened_at", WHEN, nullable=False),
        sa.Column("closed_at", WHEN, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_incident")),
        sa.UniqueConstraint("uid", name=op.f("uq_incident_uid")),
    )
    op.create_index(op.f("ix_incident_opened_at"), "incident", ["opened_at"], unique=False)
    op.create_index(
        "uq_incident_open",
        "incident",
        ["cause"],
        unique=True,
        sqlite_where=sa.text("closed_at IS NULL"),
        postgresql_where=sa.text("closed_at IS NULL"),
    )
    op.create_table(
        "incident_site",
        sa.Column("incident_id", BIG_ID, nullable=False),
        sa.Column("site_id", BIG_ID, nullable=False),
        sa.ForeignKeyConstraint(
            ["incident_id"],
            ["incident.id"],
            name=op.f("fk_incident_site_incident_id_incident"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["site_id"], ["site.id"], name=op.f("fk_incident_site_site_id_site"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("incident_id", "site_id", name=op.f("pk_incident_site")),
    )
    op.create_index(op.f("ix_incident_site_site_id"), "incident_site", ["site_id"], unique=False)
    op.create_table(
        "alert_target",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("uid", sa.String(length=20), nullable=False),
        sa.Column("site_id", BIG_ID, nullable=True),
        sa.Column("channel", sa.String(length=20), nullable=False),
        sa.Column("address", sa.String(length=2000), nullable=False),
        sa.Column("secret", sa.Text(), nullable=True),
        sa.Column("is_on", sa.Boolean(), nullable=False),
        sa.Column("created_at", WHEN, nullable=False),
        sa.Column("created_by", sa.String(length=320), nullable=False),
        sa.Column("last_at", WHEN, nullable=True),
        sa.Column("last_told", sa.String(length=20), nullable=False),
        sa.Column("last_words", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["site_id"], ["site.id"], name=op.f("fk_alert_target_site_id_site"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alert_target")),
        sa.UniqueConstraint("uid", name=op.f("uq_alert_target_uid")),
    )
    op.create_index(op.f("ix_alert_target_site_id"), "alert_target", ["site_id"], unique=False)
    op.create_table(
        "notification",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("incident_id", BIG_ID, nullable=True),
        sa.Column("target_id", BIG_ID, nullable=False),
        sa.Column("occasion", sa.String(length=20), nullable=False),
        sa.Column("told", sa.String(length=20), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("due_at", WHEN, nullable=True),
        sa.Column("sent_at", WHEN, nullable=True),
        sa.Column("words", sa.Text(), nullable=False),
        sa.Column("created_at", WHEN, nullable=False),
        sa.ForeignKeyConstraint(
            ["incident_id"],
            ["incident.id"],
            name=op.f("fk_notification_incident_id_incident"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["target_id"],
            ["alert_target.id"],
            name=op.f("fk_notification_target_id_alert_target"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notification")),
        sa.UniqueConstraint(
            "incident_id",
            "target_id",
            "occasion",
            name=op.f("uq_notification_incident_id_target_id_occasion"),
        ),
    )
    op.create_index(op.f("ix_notification_due_at"), "notification", ["due_at"], unique=False)
    op.create_index(
        op.f("ix_notification_incident_id"), "notification", ["incident_id"], unique=False
    )
    op.create_index(op.f("ix_notification_target_id"), "notification", ["target_id"], unique=False)
    op.create_table(
        "idempotency",
        sa.Column("credential_id", BIG_ID, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("body_digest", sa.String(length=64), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("answer", sa.JSON(), nullable=False),
        sa.Column("created_at", WHEN, nullable=False),
        sa.Column("expires_at", WHEN, nullable=False),
        sa.ForeignKeyConstraint(
            ["credential_id"],
            ["credential.id"],
            name=op.f("fk_idempotency_credential_id_credential"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("credential_id", "digest", name=op.f("pk_idempotency")),
    )
    op.create_index(op.f("ix_idempotency_expires_at"), "idempotency", ["expires_at"], unique=False)
