"""Microsoft's clouds: the facts of the table, and what is derived from them."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from webapp.config import load
from webapp.microsoft.clouds import (
    CLOUDS,
    CUSTOM,
    GLOBAL,
    Cloud,
    cloud_of_host,
    clouds,
    is_guid,
    is_personal,
)

FACTS = [
    ("global", "login.microsoftonline.com", "graph.microsoft.com", "portal.azure.com"),
    ("usgov", "login.microsoftonline.us", "graph.microsoft.us", "portal.azure.us"),
    ("usdod", "login.microsoftonline.us", "dod-graph.microsoft.us", "portal.azure.us"),
    (
        "china",
        "login.partner.microsoftonline.cn",
        "microsoftgraph.chinacloudapi.cn",
        "portal.azure.cn",
    ),
    ("bleu", "login.sovcloud-identity.fr", "graph.svc.sovcloud.fr", ""),
    ("delos", "login.sovcloud-identity.de", "graph.svc.sovcloud.de", ""),
]


def by_slug(slug: str) -> Cloud:
    return next(cloud for cloud in CLOUDS if cloud.slug == slug)


@pytest.mark.parametrize(("slug", "login", "graph", "portal"), FACTS)
def test_each_cloud_has_its_own_hosts(slug: str, login: str, graph: str, portal: str) -> None:
    cloud = by_slug(slug)
    assert cloud.login == f"https://{login}"
    assert cloud.graph == f"https://{graph}"
    assert cloud.portal == (f"https://{portal}" if portal else "")
    assert cloud.personal is (slug == GLOBAL)
    assert cloud.scope("Mail.Send") == f"https://{graph}/Mail.Send"
    assert cloud.api == f"https://{graph}/v1.0"
    assert cloud.issuer("1234") == f"https://{login}/1234/v2.0"
    found = cloud_of_host(graph)
    assert found is cloud


def test_the_table_is_whole_and_holds_only_clouds_that_send_mail() -> None:
    assert [cloud.slug for cloud in CLOUDS] == [fact[0] for fact in FACTS]
    hosts = {urlsplit(cloud.graph).hostname for cloud in CLOUDS}
    assert len(hosts) == len(CLOUDS)
    assert cloud_of_host("login.microsoftonline.de") is None
    assert cloud_of_host("graph.svc.sovcloud.sg") is None


def test_files_by_upload_sessions_are_not_offered_in_the_us_government_clouds() -> None:
    assert {cloud.slug for cloud in CLOUDS if not cloud.uploads} == {"usgov", "usdod"}


def test_the_operator_may_add_one_cloud(tmp_path: Path) -> None:
    environ = {"POSTROOM_INSTANCE": str(tmp_path)}
    assert CUSTOM not in clouds(load(environ))
    environ |= {
        "POSTROOM_MICROSOFT_AUTHORITY": "https://localhost:9443/",
        "POSTROOM_MICROSOFT_GRAPH": "https://localhost:9443/graph",
    }
    found = clouds(load(environ))
    assert next(iter(found)) == CUSTOM
    assert found[CUSTOM].api == "https://localhost:9443/graph/v1.0"
    assert (
        found[CUSTOM].metadata_url("common")
        == "https://localhost:9443/common/v2.0/.well-known/openid-configuration"
    )


def test_a_tenant_cannot_leave_its_place_in_the_address() -> None:
    assert by_slug("global").authority("a/../b").endswith("/a%2F..%2Fb")


def test_ids_are_known_by_their_form() -> None:
    assert is_guid(" 3F1C2D84-9a07-4e51-8a3b-6d2f0c9b71e5 ")
    assert not is_guid("8Q~abcdefghijklmnopqrstuvwxyz0123456789A")
    assert is_personal("9188040D-6c67-4c5b-b112-36a304b66dad")
    assert not is_personal("8d1f0000-0000-4000-8000-0000000000c2")
