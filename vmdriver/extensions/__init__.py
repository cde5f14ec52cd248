"""Extensions that we ship, one module each, and the loader for all."""
