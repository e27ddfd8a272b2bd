"""Randomness and sums that do not depend on the number of processes; repeated blocks."""
