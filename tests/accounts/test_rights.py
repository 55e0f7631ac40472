"""The table of rights, and the page that shows it."""

from pathlib import Path

import pytest

from webapp.accounts.models import Role
from webapp.accounts.rights import LADDER, LOWEST, Right, allows, is_per_site

ROLES = Path(__file__).parents[2] / "docs" / "roles.md"


def documented() -> dict[str, list[bool]]:
    """Right by right, what the table in docs/roles.md says of each role and of the admin."""
    rows = [line for line in ROLES.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells[0] == ["Right", *LADDER, "instance admin"]
    return {right: [cell == "yes" for cell in rest] for right, *rest in cells[2:]}


def test_the_documented_table_is_the_one_that_is_used() -> None:
    used = {
        right.value: [
            *(allows(right, role=role, is_admin=False) for role in LADDER),
            allows(right, role=None, is_admin=True),
        ]
        for right in Right
    }
    assert documented() == used


def test_every_right_and_every_role_is_in_the_table() -> None:
    assert set(LOWEST) == set(Right)
    assert set(LADDER) == set(Role)


@pytest.mark.parametrize("right", list(Right))
def test_without_a_role_and_without_being_admin_nothing_is_allowed(right: Right) -> None:
    assert not allows(right, role=None, is_admin=False)


def test_adding_a_site_is_not_held_at_a_site() -> None:
    assert not is_per_site(Right.ADD_SITE)
    assert is_per_site(Right.DELETE_SITE)
