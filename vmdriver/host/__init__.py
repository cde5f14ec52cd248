"""What every adapter needs from the host: commands, threads, retries, facts, logging."""
