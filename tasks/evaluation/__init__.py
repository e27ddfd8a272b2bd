"""What ``maskgen evaluate`` measures."""
