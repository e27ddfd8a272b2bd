"""All that makes the loop fast, behind one call: ``predict(tokens, wanted, step, last) -> (logits, positions)``."""
