"""Optimisers, averaged weights, and steps that must not count."""
