"""What the core needs of the world, as Protocols, and the settings it works by."""
