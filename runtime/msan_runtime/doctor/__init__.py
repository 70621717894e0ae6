"""What this machine has for msan, and what follows: every backend tried in a process of its own."""
