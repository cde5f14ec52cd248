"""Fakes of the outside worlds, and a stand-in gateway."""
