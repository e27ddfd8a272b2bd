"""A package, for some libraries (torch-fidelity 0.4) install a package of this name, which would win over a plain folder."""
