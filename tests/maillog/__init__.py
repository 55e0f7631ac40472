"""The log and the page of one mail."""
