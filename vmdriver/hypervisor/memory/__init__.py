"""A machine's memory to a file and back."""
