"""Who else has a say: extensions, when they are called and what they may change."""
