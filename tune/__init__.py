"""Searches: many runs over loss weights and cluster numbers, judged on validation classes."""
