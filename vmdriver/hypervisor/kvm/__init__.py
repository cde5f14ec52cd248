"""Whether machines run on KVM here: who may, and what came of trying."""
