"""How a machine starts without booting: templates, machines that wait, forks of them."""
