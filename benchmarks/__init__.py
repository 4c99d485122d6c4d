"""Floor 4: test suites, measurements and tables."""
