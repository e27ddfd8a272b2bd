"""What ``maskgen train`` runs."""
