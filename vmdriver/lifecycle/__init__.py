"""Decides and orchestrates. Knows the outside worlds only as the Protocols in ports/."""
