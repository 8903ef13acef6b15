"""Benchmarks of the package: run from the repository root, for example ``python -m benchmarks.leaderboard``."""
