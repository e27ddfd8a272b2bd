"""``python -m maskgen`` and ``accelerate launch -m maskgen``."""

from maskgen.tasks.cli import main

main()
