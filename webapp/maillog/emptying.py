"""What is left of a site once its mail is gone: a row without a name, so that its key is not given
again. Whatever speaks of the site by its key, such as the audit log, must not speak of another one.
"""

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from webapp.accounts.models import Membership
from webapp.api.models import Idempotency
from webapp.connections.models import Backup
from webapp.connections.models import Connection as MailConnection
from webapp.delivery.models import Tally
from webapp.incidents.models import AlertTarget
from webapp.routing.models import Rule
from webapp.sites.models import Credential, Site, SitePace, SiteSpace
from webapp.sites.service import NO_SLUG


def is_left(connection: Connection, site_id: int) -> bool:
    """Whether a deleted site still has its name, and all that goes with it."""
    slug = connection.scalar(sa.select(Site.slug).where(Site.id == site_id))
    return slug is not None and not slug.startswith(NO_SLUG)


def empty(connection: Connection, site_id: int) -> None:
    """Delete everything of a deleted site that has no mail any more, and free its slug."""
    logins = sa.select(Credential.id).where(Credential.site_id == site_id)
    connection.execute(sa.delete(Idempotency).where(Idempotency.credential_id.in_(logins)))
    for table in (Membership, Backup, Rule, AlertTarget, SitePace, SiteSpace, Tally):
        connection.execute(sa.delete(table).where(table.site_id == site_id))
    # Rows that mail may name stay without what they said: nothing finds the mail that names them,
    # so that to delete one is to read the whole log of every site.
    connection.execute(
        sa.update(Credential)
        .where(Credential.site_id == site_id)
        .values(label="", digest="", senders=[], networks=[], scopes=[], created_by="")
    )
    connection.execute(
        sa.update(MailConnection)
        .where(MailConnection.site_id == site_id)
        .values(nickname="", from_email="", from_name="", settings={}, secrets=None)
    )
    connection.execute(
        sa.update(Site)
        .where(Site.id == site_id)
        .values(
            slug=f"{NO_SLUG}{site_id}",
            name="",
            url="",
            admin_email="",
            redirect_to="",
            placeholder_emails=[],
            placeholder_names=[],
            primary_connection_id=None,
        )
    )
