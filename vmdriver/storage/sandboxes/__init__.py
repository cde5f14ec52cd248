"""What is kept of each sandbox: record, ledger, files of a launch."""
