"""A plain network becomes an augmented one: which convolutions, which filters stay, what attention starts with."""
