"""Sub-commands: typed functions whose signature is the command line."""
