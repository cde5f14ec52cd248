"""A storm: real machines, several callers at once, kills at random moments, a disk that fills; and a model of what was promised."""
