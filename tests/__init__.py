"""The tests, in folders that mirror `webapp/`. A package, so that helpers are imported by name."""
