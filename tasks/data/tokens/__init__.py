"""Tokens made once: shards and caches."""
