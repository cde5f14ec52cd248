"""How a wish is made true, and undone: the sandbox, its ledger, its worker."""
