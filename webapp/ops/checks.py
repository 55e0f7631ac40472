"""Checks that are run by the hour and by `postroom doctor`. They only read."""

from dataclasses import dataclass

import sqlalchemy as sa

from webapp.db import Database
from webapp.delivery.tally import Account, accounts
from webapp.sites.models import Site


@dataclass(frozen=True, kw_only=True)
class Gap:
    """A site whose ledger does not add up: mail was lost, or counted twice."""

    site_id: int
    slug: str
    """Empty when the site itself is gone."""
    name: str
    account: Account


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The law of the ledger (accepted = ended + open, site by site), looked at once."""

    accepted: int
    gaps: tuple[Gap, ...]

    @property
    def holds(self) -> bool:
        """Whether every mail is accounted for."""
        return not self.gaps


def check_ledger(db: Database) -> Ledger:
    """Look at the ledger in one snapshot, so that mail on its way does not disturb the count.

    Its cost follows the open mail and the folded counts, not the log. Raises SQLAlchemyError.
    """
    with db.reader.connect() as connection:
        if not db.is_sqlite:
            connection.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        found = accounts(connection)
        sites = {
            row.id: row for row in connection.execute(sa.select(Site.id, Site.slug, Site.name))
        }
    gaps = tuple(
        Gap(
            site_id=account.site_id,
            slug=sites[account.site_id].slug if account.site_id in sites else "",
            name=sites[account.site_id].name if account.site_id in sites else "",
            account=account,
        )
        for account in found
        if account.gap
    )
    return Ledger(accepted=sum(account.accepted for account in found), gaps=gaps)
