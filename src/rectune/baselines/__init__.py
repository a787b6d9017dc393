"""What is simpler than a language model, fitted on the same rows."""
