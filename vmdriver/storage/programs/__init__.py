"""What runs in every guest: supervisor, its loader, kernel and initramfs."""
