"""What the tests stand on and the product knows nothing of: databases, a browser, free ports."""
