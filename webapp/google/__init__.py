"""Google as a mail provider: Gmail and Google Workspace mailboxes."""
