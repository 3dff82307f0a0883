"""Searches: many runs over loss weights and cluster numbers, judged on validation classes."""

import distributed  # noqa: F401  sets Ray's environment before Ray is imported
