"""What runs: operators, sessions, artifacts, measuring."""
