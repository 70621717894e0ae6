"""What an acceptance test says: on the screen, as JSON for programs, and as a page to look at."""
