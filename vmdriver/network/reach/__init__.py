"""What a machine reaches, and why."""
