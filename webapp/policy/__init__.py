"""What becomes of a site's mail and of the site itself: kept, stopped, exported, deleted."""
