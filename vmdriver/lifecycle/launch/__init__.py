"""How a machine comes up and goes down."""
