"""What of a machine's traffic passes, as nftables text, and how it is loaded."""
