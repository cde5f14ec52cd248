"""The only folder that knows libvirt."""
