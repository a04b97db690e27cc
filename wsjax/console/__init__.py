"""Long work at a prompt: progress bars, and signals that ask to stop."""
