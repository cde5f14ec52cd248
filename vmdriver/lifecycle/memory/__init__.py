"""How memory is kept and brought back: suspend, resume, snapshots."""
