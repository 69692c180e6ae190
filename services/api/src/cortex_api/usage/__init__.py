"""Counted requests, summed."""
