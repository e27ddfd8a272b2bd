"""What the loop leaves out exactly, behind one call: ``Asking(...)(tokens, wanted, step, last)``."""
