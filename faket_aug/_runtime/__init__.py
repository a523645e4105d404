"""How work runs: threads, memory, ranks, and what is made in the background."""
