"""Values and rules. No I/O, no async, no clock: what is true, not what happens."""
