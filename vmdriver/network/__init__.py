"""The only folder that knows netlink and nftables."""
