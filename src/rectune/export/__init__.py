"""A tuned model in the forms that other programs read, each one checked against the model it was made from."""
