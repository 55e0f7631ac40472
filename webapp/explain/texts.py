"""Every explanation, as data: `EXPLANATIONS` by key. How one is chosen stands in `match`.

Menus are written as Microsoft's pages in English name them, so that they can be followed word by
word; a translation names them as Microsoft's pages in that language do.
"""

from collections.abc import Mapping

from webapp.explain import google, graph, servers, sign_in
from webapp.explain.model import Explanation

EXPLANATIONS: Mapping[str, Explanation] = {
    explanation.key: explanation
    for group in (
        sign_in.registration,
        sign_in.consent,
        sign_in.links,
        sign_in.accounts,
        graph.mailboxes,
        graph.mails,
        google.links,
        google.registrations,
        google.mails,
        servers.microsoft_by_smtp,
        servers.server_access,
        servers.server_mails,
    )
    for explanation in group()
}
